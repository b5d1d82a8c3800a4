"""A shadow through the real server: its engine repeats clients' answers by a treatment that nobody is served."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.serving import places
from tests.serving.few_slots import FewSlots
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadow import Shadow
from vllm_edit.rollout.shadow_report import ShadowReport

pytestmark = pytest.mark.slow

PATIENCE_S = 300


def test_the_engine_repeats_answers_by_the_arm_that_nobody_is_served(few_slots: FewSlots) -> None:
    store, registry = few_slots.store, few_slots.store.registry
    control, treatment = (places.add_patch(store, f"shadow-{seed}", seed=seed) for seed in (91, 92))
    headers = few_slots.create_tenant("shadowed", control)

    loading = few_slots.create_tenant("shadowed-before", treatment)

    def ask(key: dict[str, str] = headers, **fields: Any) -> httpx.Response:
        body = {"prompt": "The capital of France is", "max_tokens": 6, "temperature": 0, **fields}
        reply = httpx.post(f"{few_slots.server.url}/v1/completions", json=body, headers=key, timeout=PATIENCE_S)
        assert reply.status_code == 200
        return reply

    def compared(at_least: int) -> ShadowReport:
        ends = time.monotonic() + PATIENCE_S
        while (found := registry.rollouts.report("shadowed").shadowed) is None or found.same.n < at_least:
            assert time.monotonic() < ends, f"nothing is compared: {found}"
            time.sleep(0.1)
        return found

    arms = Arm("weights", control), Arm("weights", treatment)
    shadow = Shadow(10_000, texts=True)
    registry.rollouts.create(Rollout("shadowed", "shadowed", *arms, "pepper", shadow=shadow))
    assert registry.servers.wait(registry.generation(), 60).missing == ()
    ask(loading)  # a shadow loads no adapter into an engine whose places are taken, as those of this one
    for number, options in enumerate(({}, {"stream": True}), 1):
        ask(**options)
        found = compared(number)
    assert (found.greedy.n, found.failed) == (2, 0)
    assert [example.side for example in found.examples] == ["control"] * 2
    assert len({example.control for example in found.examples}) == 1, "a stream has the text of the whole answer"
    assert len({example.treatment for example in found.examples}) == 1
    assert found.examples[0].control == ask().json()["choices"][0]["text"]
    assert found.examples[0].control != found.examples[0].treatment, "the adapters are so strong"
    assert registry.rollouts.report("shadowed").traffic["treatment"].requests == 0
    registry.rollouts.kill("shadowed")
    assert registry.servers.wait(registry.generation(), 60).missing == ()
    known = registry.rollouts.report("shadowed").shadowed
    ask()
    time.sleep(0.5)
    assert registry.rollouts.report("shadowed").shadowed == known
