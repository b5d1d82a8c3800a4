"""Limits through the real server: it asks its own engine locality probes, and kills a treatment that changes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.rollout.example import failing
from tests.serving import places
from tests.serving.few_slots import FewSlots
from vllm_edit.edit import Probe
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.schedule import parse_schedule

pytestmark = pytest.mark.slow

PATIENCE_S = 300
PROBES = tuple(Probe(kind="unrelated", prompt=prompt) for prompt in ("Water is", "The sky is", "Two and two are"))


def wait_until(done: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < ends, "the server did not act"
        time.sleep(0.2)


def test_a_server_kills_a_treatment_whose_locality_probes_change(few_slots: FewSlots) -> None:
    store = few_slots.store
    rollouts = store.registry.rollouts
    made = places.random_patch(store.site(), "guarded", seed=77)
    (edit,) = made.manifest.edits
    probed = made.manifest.model_copy(update={"edits": (edit.model_copy(update={"probes": PROBES}),)})
    name = places.save_accepted(store, replace(made, manifest=probed))
    harmless = places.add_patch(store, "guarded-control", seed=78)
    few_slots.create_tenant("guarded", harmless)

    limits = (parse_limit("locality+20%=kill"), parse_limit("errors=warn"))
    rollouts.create(
        Rollout("guarded", "guarded", Arm("weights", harmless), Arm("weights", name), "pepper", limits=limits)
    )
    rollouts.follow("guarded", parse_schedule("1% 1s, 100%"))
    wait_until(lambda: rollouts.find("guarded").share == 10_000)
    assert rollouts.report("guarded").watched_by is not None
    wait_until(lambda: rollouts.find("guarded").state == "killed")
    [decision] = rollouts.report("guarded").decisions
    assert decision.result.limit == "locality+0.2=kill"
    assert decision.result.treatment.mean == 1.0, "the adapter is so strong that it changes every answer"

    limits = (parse_limit("errors=kill"),)
    rollouts.create(
        Rollout("erring", "guarded", Arm("weights", harmless), Arm("weights", name), "pepper", limits=limits)
    )
    rollouts.expose(failing(rollouts.ramp("erring", 100)))
    wait_until(lambda: rollouts.find("erring").state == "killed")
    followed = store.registry.servers.wait(store.registry.generation(), 60)
    assert (len(followed.acknowledged), followed.missing) == (1, ()), "and the server follows its own action"
