"""MEMIT's adapters over two layers in a real engine answer as the model here: plain, composed, scoped, exported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.editing.examples import BRAZIL, FRANCE, JAPAN
from tests.memit.examples import MEMIT, TEXTS
from tests.serving import places, traffic
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Context
from vllm_edit.cli.patches import export
from vllm_edit.composition.compose import compose
from vllm_edit.composition.scoped import Narrowing
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.second_moment import second_moments
from vllm_edit.editing.site.sites import fixed_site, over_layers
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.serving.offline import PatchedLLM
from vllm_edit.store.store import Store

pytestmark = pytest.mark.slow

EDITS = (FRANCE, JAPAN, BRAZIL)
PAIR = f"{FRANCE.prompt} and {JAPAN.prompt}"
PROMPTS = (*(edit.prompt for edit in EDITS), PAIR, "Who wrote Hamlet?")
EXACT = MEMIT.replace(damping=0.0)


@dataclass
class Running:
    llm: PatchedLLM
    store: Store
    model: Path
    patches: dict[str, CompiledPatch]

    def expected(self, deltas: list[Delta | None]) -> list[list[int]]:
        """Greedy tokens of base + ΔW by Hugging Face, one delta for each prompt."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        model = AutoModelForCausalLM.from_pretrained(self.model).eval()
        found = []
        for prompt, delta in zip(PROMPTS, deltas, strict=True):
            with (delta or Delta({})).apply(model):
                found.append(traffic.greedy(model, tokenizer(prompt)["input_ids"]))
        return found

    def answers(self, patch: str | None) -> list[list[int]]:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=traffic.TOKENS, ignore_eos=True)
        found = self.llm.generate(list(PROMPTS), sampling, patch=[patch] * len(PROMPTS))
        return [list(answer.outputs[0].token_ids) for answer in found]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("memit")
    model = places.make_model(folder / "tiny")
    base = Base.load(model)
    (moment,) = second_moments(base, [base.layout.down[2]], TEXTS, ridge=0.01)
    made = fixed_site(
        base,
        TEXTS,
        layer=2,
        token="last",
        contexts=(Context(),),
        damping=0.0,
        max_rank=8,
        slots=3,
        moment=moment,
        residual_scale=2.0,
    )
    layered = over_layers(base, made, [1, 2], TEXTS)
    store = Store.create(folder / "store", layered.site, layered.moments.tensors())

    def compiled(name: str, *edits: Edit, scoped: bool = False) -> CompiledPatch:
        patch = Patch(name=name, edits=edits, scope="subject" if scoped else "all")
        return compile_patch(patch, base, "memit", store=store, settings=EXACT)

    patches = {
        "all": compiled("all", *EDITS),
        "world": compiled("world", *EDITS, scoped=True),
        "both": compose([compiled("first", FRANCE), compiled("second", JAPAN)], "both", site=layered.site),
    }
    for patch in patches.values():
        places.save_accepted(store, patch)
    with PatchedLLM(None, store, max_loras=3, max_num_seqs=16) as llm:
        yield Running(llm, store, model, patches)


def test_the_engine_wraps_every_layer_and_answers_with_all_of_them(running: Running) -> None:
    delta = running.patches["all"].delta
    answers = running.answers("all")
    assert answers == running.expected([delta] * len(PROMPTS))
    first, last = delta.parts
    for module in (first, last):
        part = Delta({module: delta.parts[module]})
        assert answers != running.expected([part] * len(PROMPTS)), "each layer must matter"
    assert running.answers(None) == running.expected([None] * len(PROMPTS))


def test_a_composition_answers_with_both_its_members_edits(running: Running) -> None:
    delta = running.patches["both"].delta
    answers = running.answers("both")
    assert answers == running.expected([delta] * len(PROMPTS))
    tokenizer = AutoTokenizer.from_pretrained(running.model)
    for edit, tokens in zip(EDITS[:2], answers, strict=False):
        assert tokenizer.decode(tokens).strip().startswith(edit.target_new)


def test_with_scope_subject_a_prompt_gets_the_units_that_it_mentions(running: Running) -> None:
    narrowing = Narrowing(running.patches["world"], running.store.site())
    deltas = [found.delta if (found := narrowing.of(prompt)) else None for prompt in PROMPTS]
    assert [None if delta is None else delta.rank for delta in deltas] == [1, 1, 1, 2, None]
    assert running.answers("world") == running.expected(deltas)


def test_an_exported_patch_is_the_adapter_of_all_layers(running: Running, tmp_path: Path) -> None:
    export("all", tmp_path / "adapter", store=running.store.url)
    assert Delta.load_peft(tmp_path / "adapter").digest == running.patches["all"].delta.digest
