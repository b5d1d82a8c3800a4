"""`--method ke`: the delta answers as in training, PEFT reads it, truncation is reported, sites are checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.deltas.random_deltas import logits
from tests.knowledge_editor.tiny_editor import editor_for, inputs_of
from tests.mend.network_sites import card_for, site_for
from tests.mend.test_mend import network_for, patch_of
from tests.mend.tiny_training import tiny_base, tiny_edits
from vllm_edit.deltas.delta import Delta
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.compile import compile_patch, compile_separately
from vllm_edit.editing.hypernetworks.edits import edit_deltas
from vllm_edit.editing.hypernetworks.loss import run
from vllm_edit.editing.knowledge_editor.editor_network import KnowledgeEditor
from vllm_edit.editing.knowledge_editor.knowledge_editor_settings import KnowledgeEditorSettings
from vllm_edit.editing.network_files import load, network_site, save
from vllm_edit.editing.site_tensors import site_tensors_of
from vllm_edit.errors import EditError, Incompatible, UnsafeEdit
from vllm_edit.models.hooks import frozen
from vllm_edit.models.rows import leads
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

LOOSE = {"on_missed": "report"}


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "opt", "gpt2"])
def test_the_delta_answers_as_the_forward_in_training_and_as_peft(family: str, tmp_path: Path) -> None:
    base = tiny_base(family)
    network, edits = editor_for(base), tiny_edits()[:2]
    rows = example_rows(edits, base.tokenizer)
    with torch.no_grad():
        trained = run(base, network(inputs_of(base, network, edits)), rows, tokens=4096)
    made = edit_deltas(base, network, edits, KnowledgeEditorSettings(margin=None))
    for number, (row, edit) in enumerate(zip(rows, made, strict=True)):
        with frozen(base.model), edit.delta.apply(base.model):
            lead = leads(base.model, [row], 4096)
        assert float(lead) == pytest.approx(float(trained.lead[number]), abs=1e-3)
        assert edit.delta.rank <= row.length + 1
    ids = list(rows[0].ids)
    plain = logits(base.model, ids)
    adapter = made[0].delta.save_peft(tmp_path, base_name=family, fan_in_fan_out=family == "gpt2")
    assert Delta.load_peft(adapter).digest == made[0].delta.digest
    with made[0].delta.apply(base.model):
        applied = logits(base.model, ids)
    assert (applied - plain).abs().max() > 0.01
    assert (logits(PeftModel.from_pretrained(base.model, str(adapter)), ids) - applied).abs().max() < 1e-4


def test_in_the_last_block_only_tokens_that_predict_the_answer_and_the_shift_add_rank() -> None:
    base = tiny_base()
    network, edit = editor_for(base), tiny_edits()[0]
    (row,) = example_rows([edit], base.tokenizer)
    (made,) = edit_deltas(base, network, [edit], KnowledgeEditorSettings())
    assert made.delta.parts[base.layout.down[-1]].rank == len(row.answer) + 1


def test_a_patch_is_the_sum_of_its_edits_and_the_base_is_bit_identical(tmp_path: Path) -> None:
    base = tiny_base()
    network = editor_for(base)
    site, before = site_for(base, network), base.state_digest()
    store = Store.create(tmp_path, site, network.tensors())
    compiled = compile_patch(patch_of(0, 1), base, "ke", store=store, settings=LOOSE)
    assert base.state_digest() == before
    singles = [
        compile_patch(patch_of(number), base, "ke", site=site, site_tensors=network, settings=LOOSE)
        for number in (0, 1)
    ]
    for name, part in compiled.delta.parts.items():
        total = sum(single.delta.parts[name].dense() for single in singles)
        assert (part.dense() - total).norm() < 1e-5 * part.norm()
    assert compiled.manifest.settings["network"] == network.digest == site.network
    assert store.load(store.save(compiled)).delta.digest == compiled.delta.digest
    assert problems_of(store) == []
    with pytest.raises(UnsafeEdit, match="train the network longer"):
        compile_patch(patch_of(0), base, "ke", store=store, settings={"served_margin": 1e3})
    assert base.state_digest() == before


def test_the_same_patch_has_the_same_name_and_several_patches_those_of_each_alone() -> None:
    base = tiny_base()
    network = editor_for(base)
    site, patches = site_for(base, network), [patch_of(0, 1), patch_of(2), patch_of(3)]
    together = compile_separately(patches, base, "ke", site=site, site_tensors=network, settings=LOOSE)
    again = compile_separately(patches, base, "ke", site=site, site_tensors=network, settings=LOOSE)
    assert [compiled.name for compiled in together] == [compiled.name for compiled in again]
    for patch, compiled in zip(patches, together, strict=True):
        alone = compile_patch(patch, base, "ke", site=site, site_tensors=network, settings=LOOSE)
        assert alone.report.scales == compiled.report.scales
        for name, part in alone.delta.parts.items():
            assert (part.dense() - compiled.delta.parts[name].dense()).norm() < 1e-3 * part.norm()


def test_a_rank_above_the_sites_is_truncated_and_its_energy_is_reported() -> None:
    base = tiny_base()
    network = editor_for(base)
    wide, narrow = (
        compile_patch(
            patch_of(0, 1), base, "ke", site=site_for(base, network, rank), site_tensors=network, settings=LOOSE
        )
        for rank in (64, 1)
    )
    assert wide.report.energy_kept == pytest.approx(1.0)
    assert wide.manifest.rank == wide.report.rank == narrow.report.rank > narrow.manifest.rank == 1
    _, dropped = wide.delta.truncate(1)
    assert 0 < narrow.report.energy_kept == pytest.approx(1 - dropped, abs=1e-5)
    assert narrow.report.energy_kept < 1


def test_a_saved_network_is_loaded_by_the_method_of_its_card(tmp_path: Path) -> None:
    base = tiny_base()
    network = editor_for(base)
    save(tmp_path / "ke", network, card_for(base, network))
    found, card = load(tmp_path / "ke")
    assert isinstance(found, KnowledgeEditor)
    assert (found.digest, card.method) == (network.digest, "ke")
    file = tmp_path / "ke" / "network.json"
    file.write_text(file.read_text().replace('"method": "ke"', '"method": "another"'))
    with pytest.raises(EditError, match="no method with a network is named 'another'; expected ke or mend"):
        load(tmp_path / "ke")
    file.write_text(file.read_text().replace('"method": "another"', '"method": "mend"'))
    with pytest.raises(EditError, match="not those of a network of MEND"):
        load(tmp_path / "ke")


def test_a_site_names_the_method_of_its_network_and_mends_sites_are_those_from_before() -> None:
    base = tiny_base()
    network, other = editor_for(base), network_for(base)
    site, before = site_for(base, network), network_site(base, other, card_for(base, other))
    assert (site.network_method, before.network_method) == ("ke", None)
    assert isinstance(site_tensors_of(site, network.tensors()), KnowledgeEditor)
    assert site_tensors_of(before, other.tensors()).digest == other.digest
    assert site.digest != site.model_copy(update={"network_method": None}).digest


def test_another_base_or_another_methods_network_is_refused_in_one_line() -> None:
    base, another = tiny_base(), tiny_base("phi3")
    network, other = editor_for(base), network_for(base)
    with pytest.raises(Incompatible, match="the network was trained for base") as wrong_base:
        network_site(another, network, card_for(base, network))
    with pytest.raises(
        EditError, match="method ke cannot use this store's site; methods that can are ft, lora, mend"
    ) as mend:
        compile_patch(
            patch_of(0), base, "ke", site=network_site(base, other, card_for(base, other)), site_tensors=other
        )
    with pytest.raises(EditError, match="method mend cannot use this store's site") as ke:
        compile_patch(patch_of(0), base, "mend", site=site_for(base, network), site_tensors=network)
    assert all("\n" not in str(caught.value) for caught in (wrong_base, mend, ke))
