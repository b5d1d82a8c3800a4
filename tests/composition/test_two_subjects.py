"""Edits of different subjects composed on atlas: each answers alone, and in prompts that name two edited subjects."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from vllm_edit import atlas
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.checks import vouch
from vllm_edit.composition.compose import compose
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import compile_separately
from vllm_edit.editing.site.sites import fixed_site
from vllm_edit.evaluation.judging import gives
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch

WORLD = Patch.load(Path(__file__).parents[2] / "patches" / "world.yaml")
EDITS = tuple(
    next(edit for edit in WORLD.edits if edit.subject == subject).model_copy(update={"probes": ()})
    for subject in ("Japan", "Don Quixote", "Python")
)


@pytest.mark.slow
def test_composed_edits_answer_alone_and_where_both_subjects_are_named() -> None:
    base = Base.load("atlas")
    layer = len(base.layout.layers) - 2
    made = fixed_site(base, atlas.texts(400), layer=layer, token="last", max_tokens=8000)
    patches = [Patch(name=f"edit-{number}", edits=(edit,)) for number, edit in enumerate(EDITS)]
    alone = dict(
        zip(EDITS, compile_separately(patches, base, "rome", site=made.site, site_tensors=made.moment), strict=True)
    )
    runner = HFRunner(base.model, base.tokenizer)

    def gives_new(edit: Edit, prompt: str, patch: CompiledPatch) -> bool:
        (answer,) = runner.generate([Request(prompt, False, patch)], 8)
        return gives(answer, edit.target_new, edit.target_true)

    right: list[bool] = []
    for first, second in permutations(EDITS, 2):
        composed = compose([alone[first], alone[second]])
        assert vouch(composed) == []
        assert gives_new(first, first.prompt, composed)
        assert gives_new(second, second.prompt, composed)
        both = f"{first.prompt} {first.target_new}. {second.prompt}"
        right.append(gives_new(second, both, composed))
        # Text before the prompt may cost an answer; an edit of the other subject may not.
        assert right[-1] or not gives_new(second, both, alone[second]), both
    assert sum(right) >= len(right) - 1
