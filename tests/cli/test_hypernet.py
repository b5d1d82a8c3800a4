"""`vllm-edit hypernet` and `store init --method mend` or `ke`, with a tiny model from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.mend.tiny_training import TEXTS, tiny_edits
from tests.tiny import save_tiny
from vllm_edit.patch import Patch
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

QUICK = ("--layers", "2", "--steps", "4", "--set", "warm=4", "--set", "validate_every=2")
QUICK += ("--set", "edits=2", "--set", "taught=1", "--set", "kept=1", "--set", "texts=1", "--set", "validated=2")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str, str]:
    """(model folder, patch file, text file)."""
    model = save_tiny("llama", tmp_path / "model")
    edits = {edit.subject: edit for edit in tiny_edits()}  # one of each: a patch states a fact once
    patch, texts = tmp_path / "edits.yaml", tmp_path / "texts.txt"
    patch.write_text(Patch(name="edits", edits=tuple(edits.values())).dump(), encoding="utf-8")
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(model), str(patch), str(texts)


@pytest.mark.parametrize(("method", "size", "matrices"), [("mend", "rank=4", 6), ("ke", "units=4", 2)])
def test_a_network_is_trained_described_and_compiled_with(
    program: Program, files: tuple[str, str, str], tmp_path: Path, method: str, size: str, matrices: int
) -> None:
    model, patch, texts = files
    out, store = tmp_path / "network", str(tmp_path / "store")
    train = ("hypernet", "train", "--method", method, "--out", out, "--model", model, "--edits", patch)
    train += ("--texts", texts, "--set", size, *QUICK)
    ran = program(*train, "--json")
    assert ran.code == 0, ran.err
    assert ran.err.count("\nstep ") + ran.err.startswith("step ") == 2  # a line for each validation
    trained = ran.json
    assert trained["steps"] == 4
    assert trained["subjects"] == 7
    shown = program("hypernet", "info", out, "--json").json
    assert (shown["network"], shown["method"]) == (trained["network"], method)
    init = ("store", "init", "--method", method, "--model", model, "--network", out, "--store", store)
    made = program(*init, "--json").json
    assert made["network"] == trained["network"]
    assert len(made["module"].split(", ")) == matrices
    assert made["rank"] == 16
    assert made["passages"] == 0
    assert problems_of(Store.open(store)) == []
    assert program(*init[:-1], f"{store}-2", "--texts", texts, "--json").json["passages"] == len(TEXTS)
    other = program("store", "init", "--method", {"mend": "ke", "ke": "mend"}[method], *init[4:-1], f"{store}-3")
    assert other.code == 1
    assert other.err.strip().endswith(f"add --method {method}")
    ran = program("compile", patch, "--method", method, "--set", "on_missed=report", "--store", store, "--json")
    assert ran.code == 1  # four steps have no effect: the gate rejects it
    (compiled,) = ran.json["compiled"]
    assert compiled["status"] == "rejected"
    assert 0 < compiled["report"]["energy_kept"] <= 1
    assert compiled["rank"] <= 16


def test_training_on_judged_subjects_is_refused(program: Program, files: tuple[str, str, str], tmp_path: Path) -> None:
    model, patch, texts = files
    train = ("hypernet", "train", "--out", tmp_path / "network", "--model", model, "--edits", patch, "--texts", texts)
    ran = program(*train, "--judged", patch)
    assert ran.code == 1
    assert "7 subjects are in the training edits and in the evaluation" in ran.err


def test_options_that_contradict_each_other_are_refused(program: Program, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    for options, code, message in (
        (("--method", "mend", "--layer", "3"), 2, "--layer"),
        (("--network", "runs"), 2, "--network"),
        (("--method", "mend", "--network", tmp_path), 1, "hypernet train"),
    ):
        ran = program("store", "init", *options, *store)
        assert ran.code == code
        assert message in ran.err
