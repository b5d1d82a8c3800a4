"""MEND's deltas: the exported form is the trained form, PEFT reads it, and a patch of several edits is their sum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.deltas.random_deltas import logits
from tests.mend.network_sites import card_for, site_for
from tests.mend.tiny_training import tiny_base, tiny_edits
from vllm_edit.artefacts.site import Site
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.compile import compile_patch, compile_separately
from vllm_edit.editing.hypernetworks import line_search
from vllm_edit.editing.hypernetworks.edited_matrices import last_matrices
from vllm_edit.editing.hypernetworks.edits import edit_deltas
from vllm_edit.editing.hypernetworks.gradients import token_gradients
from vllm_edit.editing.hypernetworks.line_search import SCALES
from vllm_edit.editing.hypernetworks.loss import run
from vllm_edit.editing.mend.mend_settings import MendSettings, MendTrainingSettings
from vllm_edit.editing.mend.network import MendNetwork, new_network
from vllm_edit.editing.network_files import load, network_site, save
from vllm_edit.errors import Corrupt, EditError, Incompatible, NotFound, UnsafeEdit
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import frozen
from vllm_edit.models.rows import leads
from vllm_edit.patch import Patch
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

LOOSE = {"on_missed": "report"}
AS_PUBLISHED = MendSettings(margin=None)


def network_for(base: Base, layers: int = 2) -> MendNetwork:
    """A network with an effect: its parameters are random, its statistics are of a few edits."""
    settings = MendTrainingSettings(rank=4, alpha=0.3)
    network = new_network(base, last_matrices(base, layers), settings)
    rows = example_rows(tiny_edits()[:5], base.tokenizer)
    with torch.no_grad():
        for transform in network.transforms.values():
            for layer in transform.layers:
                layer.U.normal_(std=0.2, generator=torch.Generator().manual_seed(4))
    network.observe(token_gradients(base.model, network.modules_edited, rows, tokens=4096))
    return network.eval()


def gradient_step(base: Base, layers: int = 2) -> MendNetwork:
    """An untrained network: its update is a gradient step downhill, so that leads grow with it for a while."""
    network = new_network(base, last_matrices(base, layers), MendTrainingSettings(rank=4, alpha=0.01))
    rows = example_rows(tiny_edits()[:5], base.tokenizer)
    network.observe(token_gradients(base.model, network.modules_edited, rows, tokens=4096))
    return network.eval()


def patch_of(*numbers: int) -> Patch:
    edits = [tiny_edits()[2 * number] for number in numbers]
    return Patch(name="tested", edits=tuple(edits))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "opt", "gpt2"])
def test_the_exported_delta_answers_as_the_forward_in_training_and_as_peft(family: str, tmp_path: Path) -> None:
    base = tiny_base(family)
    network = network_for(base)
    rows = example_rows(tiny_edits()[:3], base.tokenizer)
    with torch.no_grad():
        factors = network(token_gradients(base.model, network.modules_edited, rows, tokens=4096))
    trained = run(base, factors, rows, tokens=4096)
    deltas = [edit_delta.delta for edit_delta in edit_deltas(base, network, tiny_edits()[:3], AS_PUBLISHED)]
    for number, (row, delta) in enumerate(zip(rows, deltas, strict=True)):
        ids = [*row.ids, *row.answer]
        base_logits = logits(base.model, ids)
        with frozen(base.model), delta.apply(base.model):
            lead = leads(base.model, [row], 4096)
            applied = logits(base.model, ids)
        assert set(delta.parts) == set(network.modules_edited)
        assert float(lead) == pytest.approx(float(trained.lead[number]), abs=1e-4)
        assert (applied - base_logits).abs().max() > 0.05
        for name, part in delta.parts.items():
            A, B = factors[name]
            assert (part.dense() - (B @ A)[number]).norm() <= 1e-6 * part.norm()
    adapter = deltas[0].save_peft(tmp_path, base_name=family, fan_in_fan_out=family == "gpt2")
    assert Delta.load_peft(adapter).digest == deltas[0].digest
    ids = list(rows[0].ids)
    with deltas[0].apply(base.model):
        applied = logits(base.model, ids)
    with_peft = PeftModel.from_pretrained(base.model, str(adapter))
    assert (logits(with_peft, ids) - applied).abs().max() < 1e-4


def test_an_edits_delta_does_not_depend_on_the_other_edits_of_its_batch() -> None:
    base = tiny_base()
    network, reachable = gradient_step(base), MendSettings(margin=-3.1)
    together = edit_deltas(base, network, tiny_edits()[:4], reachable)
    assert any(entry.scale not in (SCALES[0], 1.0, SCALES[-1]) for entry in together)
    for edit, item in zip(tiny_edits()[:4], together, strict=True):
        (alone,) = edit_deltas(base, network, [edit], reachable)
        assert alone.scale == item.scale
        for name, part in item.delta.parts.items():
            assert alone.delta.parts[name].rank == part.rank
            assert (alone.delta.parts[name].dense() - part.dense()).norm() < 1e-4 * part.norm()


def test_an_update_goes_only_so_far_that_the_answer_leads_as_text_and_in_a_chat_turn() -> None:
    base = tiny_base()
    network, edits = gradient_step(base), tiny_edits()[:6]
    own = edit_deltas(base, network, edits, AS_PUBLISHED)
    assert [item.scale for item in own] == [1.0] * 6
    asked = example_rows(edits, base.tokenizer) + example_rows(edits, base.tokenizer, chat=True)

    def least(number: int, scale: float) -> float:
        parts = {name: LowRank(B=scale * part.B, A=part.A) for name, part in own[number].delta.parts.items()}
        with frozen(base.model), Delta(parts).apply(base.model):
            return float(leads(base.model, [row for row in asked if row.edit == number], 4096).min())

    table = [[least(number, scale) for scale in SCALES] for number in range(len(edits))]
    margin = -3.1  # a random model knows nothing: some edits reach the margin, and some do not
    made = edit_deltas(base, network, edits, MendSettings(margin=margin))
    reached = [max(line) >= margin for line in table]
    assert True in reached
    assert False in reached
    assert any(patch.scale not in (SCALES[0], 1.0, SCALES[-1]) for patch in made)
    for number, (line, setup) in enumerate(zip(table, made, strict=True)):
        place = next(i for i, lead in enumerate(line) if lead >= margin) if reached[number] else line.index(max(line))
        assert setup.scale == SCALES[place]
        for name, part in setup.delta.parts.items():
            expected = own[number].delta.parts[name]
            assert torch.allclose(part.B, setup.scale * expected.B)
            assert torch.equal(part.A, expected.A)


@pytest.mark.parametrize(("family", "layers"), [("llama", 2), ("llama", 3), ("gptj", 2), ("gpt2", 2)])
def test_blocks_below_the_edited_matrices_need_not_run_again(
    family: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers are all there are, and GPT-J's blocks put out tuples: there everything is run."""
    base = tiny_base(family)
    network, edits, reachable = gradient_step(base, layers), tiny_edits()[:6], MendSettings(margin=-3.1)
    found = [edit_delta.scale for edit_delta in edit_deltas(base, network, edits, reachable)]
    monkeypatch.setattr(line_search, "blocks_below", lambda base, factors: ())
    assert [edit_delta.scale for edit_delta in edit_deltas(base, network, edits, reachable)] == found
    assert len(set(found)) > 1


def test_a_margin_must_be_a_number_or_none() -> None:
    assert MendSettings.of({"margin": None}).identity("n")["margin"] is None
    for name, wrong, message in (
        ("margin", "far", "settings of mend: "),
        ("margin", float("nan"), "margin must be a number; got nan"),
        ("served_margin", None, "settings of mend: "),
    ):
        with pytest.raises(EditError, match=message):
            MendSettings.of({name: wrong})


def test_a_patch_is_the_sum_of_its_edits_and_the_base_is_bit_identical(tmp_path: Path) -> None:
    base = tiny_base()
    network = network_for(base)
    site, before = site_for(base, network), base.state_digest()
    store = Store.create(tmp_path, site, network.tensors())
    compiled = compile_patch(patch_of(0, 1), base, "mend", store=store, settings=LOOSE)
    assert base.state_digest() == before
    singles = [
        compile_patch(patch_of(n), base, "mend", site=site, site_tensors=network, settings=LOOSE) for n in (0, 1)
    ]
    for name, part in compiled.delta.parts.items():
        total = sum(single.delta.parts[name].dense() for single in singles)
        assert (part.dense() - total).norm() < 1e-5 * part.norm()
    assert compiled.report.energy_kept == pytest.approx(1.0)
    assert compiled.report.scales == tuple(scale for single in singles for scale in single.report.scales)
    assert compiled.manifest.settings["network"] == network.digest == site.network
    assert compiled.manifest.rank == compiled.report.rank == sum(single.manifest.rank for single in singles)
    assert store.load(store.save(compiled)).delta.digest == compiled.delta.digest
    assert problems_of(store) == []


def test_a_rank_above_the_sites_is_truncated_and_reported() -> None:
    base = tiny_base()
    network = network_for(base)
    whole = compile_patch(
        patch_of(0, 1), base, "mend", site=site_for(base, network), site_tensors=network, settings=LOOSE
    )
    narrow = site_for(base, network, rank=1)
    cut = compile_patch(patch_of(0, 1), base, "mend", site=narrow, site_tensors=network, settings=LOOSE)
    assert whole.manifest.rank > cut.manifest.rank == 1
    expected, dropped = whole.delta.truncate(1)
    assert 0 < cut.report.energy_kept == pytest.approx(1 - dropped, abs=1e-5)
    assert cut.report.energy_kept < 1
    for name, part in cut.delta.parts.items():
        assert (part.dense() - expected.parts[name].dense()).norm() < 1e-4 * part.norm()


def test_many_patches_at_once_are_those_compiled_one_by_one() -> None:
    base = tiny_base()
    network = network_for(base)
    site, patches = site_for(base, network), [patch_of(0, 1), patch_of(2), patch_of(3)]
    together = compile_separately(patches, base, "mend", site=site, site_tensors=network, settings=LOOSE)
    for patch, compiled in zip(patches, together, strict=True):
        alone = compile_patch(patch, base, "mend", site=site, site_tensors=network, settings=LOOSE)
        assert compiled.manifest.edits == alone.manifest.edits
        for name, part in alone.delta.parts.items():
            assert (compiled.delta.parts[name].dense() - part.dense()).norm() < 1e-4 * part.norm()


def test_an_edit_that_misses_is_refused_by_name_or_reported() -> None:
    base = tiny_base()
    network = network_for(base)
    with torch.no_grad():
        network.alpha.zero_()  # then nothing changes
    site = site_for(base, network)
    with pytest.raises(UnsafeEdit, match=r"edit 0 \('The capital of France is' → 'Paris'\): the target leads by -"):
        compile_patch(patch_of(0), base, "mend", site=site, site_tensors=network)
    reported = compile_patch(patch_of(0), base, "mend", site=site, site_tensors=network, settings=LOOSE)
    assert reported.report.missed == (0,)
    scoped = patch_of(0, 2).model_copy(update={"scope": "subject"})
    with pytest.raises(UnsafeEdit) as refused:
        compile_patch(scoped, base, "mend", site=site, site_tensors=network)
    assert [edit.prompt in str(refused.value) for edit in scoped.edits] == [True, True]


def test_methods_and_sites_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from tests.editing.examples import bench
    from tests.editing.examples import patch_of as closed_form_patch

    base = tiny_base()
    network = network_for(base)
    store = Store.create(tmp_path, site_for(base, network), network.tensors())
    with pytest.raises(EditError, match=r"method rome cannot use this store's site; methods that can are .*mend"):
        compile_patch(patch_of(0), base, "rome", store=store)
    with pytest.raises(EditError, match="expected a store with a second moment"):
        store.moment()
    other = bench()
    with pytest.raises(EditError, match=r"method mend cannot use this store's site; .*rome"):
        compile_patch(
            closed_form_patch(*tiny_edits()[:1]), other.base, "mend", site=other.site, site_tensors=other.moment
        )
    with pytest.raises(Incompatible, match="trained for base"):
        network_site(tiny_base("qwen2"), network, card_for(base, network))
    with pytest.raises(EditError, match="expected the network with digest"):
        compile_patch(patch_of(0), base, "mend", site=site_for(base, network), site_tensors=network_for(base, layers=1))
    with pytest.raises(EditError, match="expected 1 to 3 layers"):
        last_matrices(base, 4)


def test_a_site_is_of_one_kind() -> None:
    base = tiny_base()
    site = site_for(base, network_for(base))
    assert site.layer == 1
    assert site.modules == last_matrices(base, 2)
    with pytest.raises(ValueError, match="a closed-form site needs d_in, d_out, contexts, second_moment"):
        Site.model_validate(site.model_dump() | {"network": None})
    with pytest.raises(ValueError, match="a site of kind 'network' has no second_moment"):
        Site.model_validate(site.model_dump() | {"second_moment": "0" * 32})


def test_a_network_comes_back_from_its_folder_and_damage_is_reported(tmp_path: Path) -> None:
    base = tiny_base()
    network = network_for(base)
    with pytest.raises(NotFound, match="hypernet train"):
        load(tmp_path)
    save(tmp_path, network, card_for(base, network))
    again, card = load(tmp_path)
    assert again.digest == network.digest == card.digest
    save(tmp_path, network, card_for(base, network).model_copy(update={"digest": "0" * 32}))
    with pytest.raises(Corrupt, match="its card says"):
        load(tmp_path)


def test_the_search_for_the_length_reports_every_scale() -> None:
    base, seen = tiny_base(), list[tuple[str, int, int]]()
    edit_deltas(base, network_for(base), tiny_edits()[:2], MendSettings(), lambda *step: seen.append(step))
    assert seen == [("searching lengths", number, len(SCALES)) for number in range(1, len(SCALES) + 1)]
