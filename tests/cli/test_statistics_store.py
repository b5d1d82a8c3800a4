"""`vllm-edit store init --method ultraedit`, with a tiny model from a folder."""

from __future__ import annotations

from pathlib import Path

from tests.cli.program import Program
from tests.mend.tiny_training import TEXTS, tiny_edits
from tests.tiny import save_tiny
from vllm_edit.patch import Patch
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store


def test_a_store_is_made_from_edits_alone_and_compiled_with(program: Program, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    patch, few, texts = tmp_path / "edits.yaml", tmp_path / "few.yaml", tmp_path / "texts.txt"
    edits = {edit.subject: edit for edit in tiny_edits()}  # one of each: a patch states a fact once
    others = [edit.model_copy(update={"prompt": f"The river of {edit.subject} is the"}) for edit in edits.values()]
    patch.write_text(Patch(name="edits", edits=(*edits.values(), *others)).dump(), encoding="utf-8")
    few.write_text(Patch(name="few", edits=tuple(edits.values())).dump(), encoding="utf-8")
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    store = str(tmp_path / "store")
    init = ("store", "init", "--method", "ultraedit", "--model", model, "--store", store)
    refused = program(*init, "--edits", few)
    assert refused.code == 1
    assert "at least 8 edits, got 7" in refused.err
    made = program(*init, "--edits", patch, "--texts", texts, "--json").json
    assert (made["rank"], len(made["module"].split(", "))) == (16, 3)
    assert program("store", "status", "--store", store, "--json").json["statistics"] == made["statistics"]
    assert problems_of(Store.open(store)) == []
    ran = program("compile", few, "--method", "ultraedit", "--set", "on_missed=report", "--store", store, "--json")
    (compiled,) = ran.json["compiled"]
    assert compiled["rank"] <= 16
    assert 0 < compiled["report"]["energy_kept"] <= 1
    assert program("compile", few, "--method", "mend", "--store", store).code == 1


def test_options_that_contradict_each_other_are_refused(program: Program, tmp_path: Path) -> None:
    for options, message in (
        (("--layer", "3"), "--layer"),
        (("--token", "last"), "--token"),
        (("--network", "x"), "--network"),
    ):
        ran = program("store", "init", "--method", "ultraedit", *options, "--store", tmp_path / "store")
        assert ran.code == 2
        assert message in ran.err
