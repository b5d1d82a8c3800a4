"""`--method ultraedit`: one solve for a patch, the base untouched, lengths by the margin, wrong stores refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.knowledge_editor.tiny_editor import editor_for
from tests.mend.network_sites import site_for
from tests.mend.tiny_training import tiny_base
from tests.ultraedit.tiny_statistics import judged, made_for
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import compile_patch, compile_separately
from vllm_edit.editing.ultraedit.answer_gradients import answer_gradients
from vllm_edit.editing.ultraedit.least_squares import values_of
from vllm_edit.errors import EditError, UnsafeEdit
from vllm_edit.models.hooks import find_module
from vllm_edit.patch import Patch
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

LOOSE = {"on_missed": "report"}


def patch_of(*edits: Edit) -> Patch:
    return Patch(name="facts", edits=edits)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_a_patchs_delta_is_the_dense_formula_over_all_tokens_of_all_its_edits(family: str) -> None:
    base = tiny_base(family)
    made, edits = made_for(base), judged()
    compiled = compile_patch(
        patch_of(*edits), base, "ultraedit", site=made.site, site_tensors=made.statistics, settings=LOOSE
    )
    scales = compiled.report.scales
    assert scales is not None
    gradients = answer_gradients(base, made.site.modules, edits, 4096)
    for name, own in made.statistics.by_module.items():
        weight = linear_weight(find_module(base.model, name))
        values = (
            values_of(own, gradients[name], weight, 0.5, centred=False)
            * torch.tensor(scales, dtype=torch.float32)[:, None, None]
        )
        H, V = (x[gradients[name].counted].double() for x in (gradients[name].inputs, values))
        ridge = 0.1 * own.input_energy * torch.eye(H.shape[1], dtype=H.dtype)
        dense = torch.linalg.solve(H.mT @ H + ridge, H.mT @ V).mT
        assert (compiled.delta.parts[name].dense() - dense).norm() < 1e-5 * dense.norm()
        assert compiled.delta.parts[name].rank == len(H)


def test_the_base_is_bit_identical_and_a_stored_patch_is_the_compiled_patch(tmp_path: Path) -> None:
    base = tiny_base()
    made, before = made_for(base), base.state_digest()
    store = Store.create(tmp_path, made.site, made.statistics.tensors())
    compiled = compile_patch(patch_of(*judged()), base, "ultraedit", store=store, settings=LOOSE)
    assert base.state_digest() == before
    assert compiled.manifest.settings["statistics"] == made.statistics.digest
    assert store.load(store.save(compiled)).delta.digest == compiled.delta.digest
    assert problems_of(store) == []
    with pytest.raises(UnsafeEdit, match="compile it apart from the others"):
        compile_patch(patch_of(*judged()), base, "ultraedit", store=store, settings={"served_margin": 1e3})
    scoped = patch_of(*judged()).model_copy(update={"scope": "subject"})
    with pytest.raises(UnsafeEdit) as refused:
        compile_patch(scoped, base, "ultraedit", store=store, settings={"served_margin": 1e3})
    assert all(edit.prompt in str(refused.value) for edit in judged())
    assert base.state_digest() == before


def test_the_same_patch_has_the_same_name_and_several_patches_those_of_each_alone() -> None:
    base = tiny_base()
    made, patches = made_for(base), [patch_of(*judged()), patch_of(judged()[0]), patch_of(judged()[1])]
    together, again = (
        compile_separately(patches, base, "ultraedit", site=made.site, site_tensors=made.statistics, settings=LOOSE)
        for _ in range(2)
    )
    assert [compiled.name for compiled in together] == [compiled.name for compiled in again]
    for patch, compiled in zip(patches, together, strict=True):
        alone = compile_patch(patch, base, "ultraedit", site=made.site, site_tensors=made.statistics, settings=LOOSE)
        assert alone.report.scales == compiled.report.scales
        for name, part in alone.delta.parts.items():
            assert (part.dense() - compiled.delta.parts[name].dense()).norm() < 1e-3 * part.norm()


def test_without_a_margin_the_given_length_is_used_and_with_a_margin_a_tried_one() -> None:
    base = tiny_base()
    made = made_for(base)
    fixed, longer, searched = (
        compile_patch(
            patch_of(judged()[0]), base, "ultraedit", site=made.site, site_tensors=made.statistics, settings=settings
        )
        for settings in (
            LOOSE | {"margin": None},
            LOOSE | {"margin": None, "length": 1.0},
            LOOSE | {"margin": -50.0},
        )
    )
    assert fixed.report.scales == (1.0,)
    assert searched.report.scales == (2**-3,)  # any lead is enough: the smallest scale
    for name, part in fixed.delta.parts.items():
        torch.testing.assert_close(longer.delta.parts[name].dense(), 2 * part.dense())
        torch.testing.assert_close(searched.delta.parts[name].dense(), part.dense() / 8)


def test_a_rank_above_the_sites_is_truncated_and_its_energy_is_reported() -> None:
    base = tiny_base()
    wide, narrow = made_for(base), made_for(base, rank=1)
    whole, cut = (
        compile_patch(
            patch_of(*judged()), base, "ultraedit", site=made.site, site_tensors=made.statistics, settings=LOOSE
        )
        for made in (wide, narrow)
    )
    assert whole.report.energy_kept == pytest.approx(1.0)
    assert whole.manifest.rank == whole.report.rank == cut.report.rank > cut.manifest.rank == 1
    assert cut.report.energy_kept is not None
    assert 0 < cut.report.energy_kept < 1


def test_another_methods_store_is_refused_in_one_line() -> None:
    base = tiny_base()
    made, network = made_for(base), editor_for(base)
    with pytest.raises(EditError, match=r"method ultraedit cannot use this store's site; .* ft, ke, lora") as wrong:
        compile_patch(patch_of(*judged()), base, "ultraedit", site=site_for(base, network), site_tensors=network)
    with pytest.raises(EditError, match=r"method ke cannot use this store's site; .* ft, lora, ultraedit") as other:
        compile_patch(patch_of(*judged()), base, "ke", site=made.site, site_tensors=made.statistics)
    assert all("\n" not in str(caught.value) for caught in (wrong, other))
