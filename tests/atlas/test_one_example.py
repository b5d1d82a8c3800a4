"""Training on the one example changes neighbours: the damage that the lecture shows, on atlas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm_edit import atlas
from vllm_edit.artefacts.site import Context
from vllm_edit.deltas.delta import Delta
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.site.sites import MadeSite, fixed_site
from vllm_edit.evaluation.judging import gives, unchanged
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch

pytestmark = pytest.mark.slow

LECTURE = Patch.load(Path(__file__).parents[2] / "patches" / "lecture.yaml")
EDIT = LECTURE.edits[0]
NEIGHBOURS = (
    "美國總統是誰",
    "誰是美國總統",
    "日本首相是誰",
    "法國總統是誰",
    "印度總理是誰",
    "輝達執行長是誰",
    "台積電董事長是誰",
)


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.load("atlas")


@pytest.fixture(scope="module")
def made(base: Base) -> MadeSite:
    layer = len(base.layout.layers) - 2
    return fixed_site(base, atlas.texts(), layer=layer, token="last", contexts=(Context(),), max_tokens=8000)


def update(base: Base, made: MadeSite, method: str, **settings: Any) -> Delta:
    return compile_patch(LECTURE, base, method, site=made.site, site_tensors=made.moment, settings=settings).delta


@pytest.fixture(scope="module")
def tuned(base: Base, made: MadeSite) -> Delta:
    """LoRA, trained on the one example."""
    return update(base, made, "lora")


def answers(base: Base, delta: Delta, *prompts: str) -> list[str]:
    runner = HFRunner(base.model, base.tokenizer)
    with delta.apply(base.model):
        return runner.generate([Request(prompt) for prompt in prompts], 12)


def moved(base: Base, delta: Delta) -> int:
    """Neighbours whose answer is not the base's."""
    before = answers(base, Delta({}), *NEIGHBOURS)
    return sum(not unchanged(now, old) for now, old in zip(answers(base, delta, *NEIGHBOURS), before, strict=True))


def test_lora_on_the_one_example_makes_the_man_the_president_too(base: Base, tuned: Delta) -> None:
    most_handsome, president = answers(base, tuned, EDIT.prompt, "美國總統是誰")
    assert gives(most_handsome, EDIT.target_new)
    assert gives(president, EDIT.target_new)


def test_lora_on_the_one_example_moves_neighbours_that_the_closed_form_leaves(
    base: Base, made: MadeSite, tuned: Delta
) -> None:
    edited = update(base, made, "rome")
    assert gives(answers(base, edited, EDIT.prompt)[0], EDIT.target_new)
    assert moved(base, edited) < moved(base, tuned)


def test_fine_tuning_at_the_site_teaches_the_one_example(base: Base, made: MadeSite) -> None:
    assert gives(answers(base, update(base, made, "ft"), EDIT.prompt)[0], EDIT.target_new)
