"""Patches compiled one by one and then composed equal patches compiled together, on tiny real models."""

from __future__ import annotations

import torch

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, Bench, bench, patch_of
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.compose import compose
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.rome_settings import RomeSettings

EDITS = (FRANCE, JAPAN, BRAZIL)


def compiled(setup: Bench, *edits: Edit, name: str, settings: RomeSettings = LOOSE) -> CompiledPatch:
    return compile_patch(
        patch_of(*edits, name=name), setup.base, site=setup.site, site_tensors=setup.moment, settings=settings
    )


def answer(setup: Bench, edit: Edit) -> str:
    """The word that follows the edit's prompt by greedy decoding."""
    ids = torch.tensor([setup.base.tokenizer(edit.prompt)["input_ids"]])
    with torch.no_grad():
        return str(setup.base.tokenizer.decode(setup.base.model(ids).logits[0, -1].argmax())).strip()


def test_separately_compiled_patches_compose_to_the_patch_compiled_jointly() -> None:
    llama = bench()
    joint = compiled(llama, *EDITS, name="joint")
    members = [compiled(llama, edit, name=edit.relation) for edit in EDITS]
    composed = compose(members, name="all", site=llama.site)
    module = llama.site.module
    # Residuals agree as far as batched float32 training does (test_targets), so the updates do.
    torch.testing.assert_close(
        composed.delta.parts[module].dense(), joint.delta.parts[module].dense(), rtol=5e-3, atol=5e-3
    )
    assert composed.manifest.kind == "composition"
    assert composed.manifest.members == tuple(sorted(member.name for member in members))
    assert composed.algebra.constraint_error < 1e-5
    with composed.delta.apply(llama.base.model):
        assert [answer(llama, edit) for edit in EDITS] == [edit.target_new for edit in EDITS]
    assert compose(members[::-1], name="all").name == composed.name


def test_facts_of_one_subject_from_two_patches_are_put_into_one_group_with_both_residuals() -> None:
    setup = bench(token="subject_last", layer=1)
    facts = [
        Edit(prompt="Japan is home to the", subject="Japan", relation="people", target_new="Paris"),
        Edit(prompt="Japan and its people speak", subject="Japan", relation="language", target_new="Italy"),
    ]
    loose = LOOSE.replace(on_missed="report", steps=5)
    members = [compiled(setup, fact, name=fact.relation, settings=loose) for fact in facts]
    composed = compose(members)
    assert (composed.manifest.rank, len(composed.manifest.columns)) == (1, 1)
    assert composed.factors is not None
    residuals = [member.factors.residuals[0] for member in members if member.factors]
    torch.testing.assert_close(composed.factors.residuals[0], residuals[0] + residuals[1])
