"""`PatchedLLM` over a real engine: one batch with patches, a tenant, base and ike, each prompt with its own answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import places, traffic
from vllm_edit.errors import EditError, Incompatible, NotFound
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.decision import Choice
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.serving.offline import PatchedLLM
from vllm_edit.store.store import Store

pytestmark = pytest.mark.slow

PROMPT, ROUTE = traffic.PROMPTS[0], traffic.ROUTES[0]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PatchedLLM, Store, Path]]:
    folder = tmp_path_factory.mktemp("offline")
    model = places.make_model(folder / "tiny")
    store = places.make_store(folder / "store", places.make_site(model, slots=3))
    for index in range(3):
        places.add_patch(store, f"patch{index}", index)
    store.registry.create_tenant("acme")
    store.registry.publish("acme", store.resolve("patch2"))
    with PatchedLLM(None, store, max_loras=3, max_num_seqs=16) as llm:
        yield llm, store, model


def sampling() -> object:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=traffic.TOKENS, ignore_eos=True)


def test_each_prompt_of_one_batch_is_answered_with_its_own_patch(opened: tuple[PatchedLLM, Store, Path]) -> None:
    llm, store, model = opened
    names = [store.resolve(f"patch{index}") for index in range(3)]
    expected = traffic.references(store, model, [None, *names])
    asked = [None, "patch0", names[1], "patch2@" + names[2].partition("@")[2][:8]] * 3
    answers = llm.generate([PROMPT] * 12, sampling(), patch=asked)
    wanted = [expected[name, ROUTE, PROMPT] for name in [None, *names]] * 3
    assert [list(answer.outputs[0].token_ids) for answer in answers] == wanted

    tenants = llm.generate([PROMPT] * 3, sampling(), tenant=["acme", None, "acme"], mode=["weights", "weights", "base"])
    assert [list(answer.outputs[0].token_ids) for answer in tenants] == [wanted[3], wanted[0], wanted[0]]


def test_ike_puts_the_prefix_before_the_prompt(opened: tuple[PatchedLLM, Store, Path]) -> None:
    llm, _, _ = opened
    (answer,) = llm.generate(PROMPT, sampling(), patch="patch0", mode="ike")
    assert answer.prompt is not None
    assert answer.prompt.startswith("New Fact")
    assert answer.prompt.endswith(PROMPT)
    assert answer.lora_request is None


def test_a_patch_that_cannot_be_served_is_refused(opened: tuple[PatchedLLM, Store, Path], tmp_path: Path) -> None:
    llm, store, model = opened
    with pytest.raises(NotFound):
        llm.generate(PROMPT, sampling(), patch="nothing")
    with pytest.raises(NotFound):
        llm.generate(PROMPT, sampling(), tenant="nobody")
    with pytest.raises(EditError, match="2 prompts"):
        llm.generate([PROMPT] * 2, sampling(), patch=["patch0"])
    with pytest.raises(EditError, match="mode"):
        llm.generate(PROMPT, sampling(), mode="other")  # type: ignore[arg-type]
    with pytest.raises(EditError, match="half of a surrogate pair"):
        llm.generate([PROMPT, "half \ud83d"], sampling())
    elsewhere = places.make_store(tmp_path / "elsewhere", places.make_site(model, damping=0.9))
    places.add_patch(elsewhere, "foreign", 7)
    llm.store = elsewhere
    try:
        with pytest.raises(Incompatible, match="site"):
            llm.generate(PROMPT, sampling(), patch="foreign")
    finally:
        llm.store = store


def test_a_tenant_is_answered_like_a_request_that_names_no_user(tmp_path: Path) -> None:
    store = places.make_store(tmp_path / "store", places.make_site(places.make_model(tmp_path / "model")))
    published, promoted = (places.add_patch(store, f"patch{index}", index) for index in range(2))
    llm = object.__new__(PatchedLLM)  # choosing needs no engine
    llm.store = store
    registry = store.registry
    registry.create_tenant("acme")
    assert llm.choose(None, "acme", None) == Choice("base", None, "acme", "DEFAULT")
    registry.publish("acme", published)
    assert llm.choose(None, "acme", None) == Choice("weights", published, "acme", "TARGETING_MATCH")
    arms = {"control": Arm("base"), "treatment": Arm("ike", promoted)}
    registry.rollouts.create(Rollout("spring", "acme", salt="pepper", **arms))
    registry.rollouts.ramp("spring", 100)
    assert (control := llm.choose(None, "acme", None)).adapter is None
    assert (control.mode, control.reason, control.arm) == ("base", "NO_KEY", "control")
    registry.rollouts.promote("spring")
    assert (treated := llm.choose(None, "acme", None)).adapter == promoted
    assert (treated.mode, treated.reason) == ("ike", "STATIC")
    assert llm.choose(None, "acme", "weights") == Choice("weights", promoted, "acme", "STATIC")
    assert llm.choose("patch0", None, None) == Choice("weights", published)


def test_gpt2_and_gptj_support_lora_in_this_process() -> None:
    from vllm.model_executor.models import supports_lora

    from vllm_edit.engine.compat.gpt_lora import GPT2WithLoRA, GPTJWithLoRA

    assert supports_lora(GPT2WithLoRA)
    assert supports_lora(GPTJWithLoRA)
