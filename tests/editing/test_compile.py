"""Compiling gives a content-addressed patch whose delta reaches its targets, and leaves the base bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, Bench, bench, patch_of
from tests.knowledge_editor.tiny_editor import editor_for
from tests.memit.examples import layered
from tests.mend.network_sites import site_for
from tests.mend.tiny_training import tiny_base
from tests.ultraedit.tiny_statistics import made_for
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.solver import System, solve
from vllm_edit.digest import digest_tensors
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import METHODS, compile_patch
from vllm_edit.editing.mend.network import MendNetwork
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.site_tensors import SiteTensors
from vllm_edit.errors import EditError, Incompatible, UnsafeEdit
from vllm_edit.models.base import Base, unchanged
from vllm_edit.store.store import Store

EDITS = (FRANCE, JAPAN, BRAZIL)


@pytest.fixture(scope="module")
def llama() -> Bench:
    return bench()


def compiled(setup: Bench, *edits: Edit, name: str = "tested", settings: RomeSettings = LOOSE) -> CompiledPatch:
    patch = patch_of(*edits, name=name)
    return compile_patch(patch, setup.base, site=setup.site, site_tensors=setup.moment, settings=settings)


def answer(setup: Bench, edit: Edit) -> str:
    """The word that follows the edit's prompt by greedy decoding."""
    ids = torch.tensor([setup.base.tokenizer(edit.prompt)["input_ids"]])
    with torch.no_grad():
        return str(setup.base.tokenizer.decode(setup.base.model(ids).logits[0, -1].argmax())).strip()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_the_delta_applied_the_model_gives_every_target_and_without_it_none(family: str) -> None:
    setup = bench(family)
    result = compiled(setup, *EDITS)
    targets = [edit.target_new for edit in EDITS]
    before = [answer(setup, edit) for edit in EDITS]
    with result.delta.apply(setup.base.model):
        assert [answer(setup, edit) for edit in EDITS] == targets
    assert [answer(setup, edit) for edit in EDITS] == before
    assert not any(old == new for old, new in zip(before, targets, strict=True))


def test_the_manifest_names_edits_base_and_settings(llama: Bench) -> None:
    result = compiled(llama, *EDITS)
    manifest = result.manifest
    assert (manifest.base, manifest.site) == (llama.base.fingerprint.digest, llama.site.digest)
    assert (manifest.edits, manifest.modules, manifest.rank) == (EDITS, llama.site.modules, 3)
    assert result.factors is not None
    assert manifest.factors == digest_tensors(result.factors.tensors())
    assert manifest.adapter == result.delta.digest
    update = result.delta.parts[llama.site.module]
    assert (update.A.dtype, update.B.dtype) == (torch.float32, torch.float32)
    stored = result.factors
    system = System.of(stored.keys, stored.whitened, [column.group for column in manifest.columns])
    again = solve(system, stored.residuals)
    torch.testing.assert_close(update.dense().double(), again.dense(), rtol=1e-5, atol=1e-6)


def test_names_are_content_run_time_settings_do_not_change_them_and_others_do(llama: Bench) -> None:
    first = compiled(llama, FRANCE)
    assert compiled(llama, FRANCE, settings=LOOSE.replace(on_missed="report")).name == first.name
    assert compiled(llama, FRANCE, settings=LOOSE.replace(margin=1.5)).name != first.name
    assert compiled(llama, FRANCE, name="other").manifest.adapter == first.manifest.adapter


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_base_is_bit_identical_after_success_and_after_a_refusal(family: str) -> None:
    setup = bench(family)
    before = setup.base.state_digest()
    compiled(setup, FRANCE)
    with pytest.raises(UnsafeEdit):
        compiled(setup, FRANCE, settings=LOOSE.replace(steps=0))
    assert setup.base.state_digest() == before


def test_an_exception_inside_training_leaves_the_base_as_it_was(llama: Bench) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with unchanged(llama.base), pytest.raises(KeyboardInterrupt):
        compile_patch(
            patch_of(FRANCE), llama.base, site=llama.site, site_tensors=llama.moment, settings=LOOSE, progress=stop
        )


def test_compiling_for_a_store_uses_its_site_and_saves_nothing(llama: Bench, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", llama.site, llama.moment.tensors())
    result = compile_patch(patch_of(FRANCE), llama.base, store=store, settings=LOOSE)
    assert result.manifest.site == llama.site.digest
    assert store.names() == []
    assert store.save(result) == result.name


def test_a_patch_that_cannot_be_compiled_is_refused_with_the_reason(llama: Bench) -> None:
    patch = patch_of(FRANCE)
    with pytest.raises(EditError, match=r"no method 'remo'; methods are .*rome"):
        compile_patch(patch, llama.base, "remo", site=llama.site, site_tensors=llama.moment)
    with pytest.raises(EditError, match="needs a store, or a site"):
        compile_patch(patch, llama.base, site=llama.site)
    with pytest.raises(Incompatible, match="the site was made for base"):
        compile_patch(patch, bench("qwen2").base, site=llama.site, site_tensors=llama.moment)
    with pytest.raises(EditError, match="expected the second moment with digest"):
        compile_patch(patch, llama.base, site=llama.site, site_tensors=llama.moment.with_ridge(0.5))


def place_of(method: str) -> tuple[Base, Site, SiteTensors]:
    """A tiny base with a site that is made for the method."""
    if method in ("memit", "alphaedit"):
        made = layered()
        return made.base, made.site, made.moments
    if method in ("rome", "ft", "lora"):
        setup = bench()
        return setup.base, setup.site, setup.moment
    base = tiny_base()
    if method == "ultraedit":
        solved = made_for(base)
        return base, solved.site, solved.statistics
    network = editor_for(base)
    used = network if method == "ke" else MendNetwork(network.shapes, rank=2)
    return base, site_for(base, used), used


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_reports_its_progress(method: str) -> None:
    base, site, tensors = place_of(method)
    values = {"on_missed": "report"} | ({} if "steps" not in METHODS[method].settings.model_fields else {"steps": 2})
    seen: list[tuple[str, int, int]] = []
    compile_patch(
        patch_of(FRANCE), base, method, site=site, site_tensors=tensors, settings=values,
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert seen
    assert all(step and 0 <= done <= total for step, done, total in seen)
