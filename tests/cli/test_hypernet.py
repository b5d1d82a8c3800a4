"""`vllm-edit hypernet` and `store init --method mend` or `ke`, with a tiny model from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.mend.tiny_training import TEXTS, tiny_base, tiny_edits
from tests.tiny import save_tiny
from vllm_edit.cli import hypernet
from vllm_edit.cli.training_inputs import TrainingInputs
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.hypernetworks.network_training import NetworkTrainingState
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.pool import Known, Pool, side_of
from vllm_edit.facts.training_edits import pool_edits
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


def test_of_patch_files_neither_gate_probes_nor_judged_prompts_are_trained_on(tmp_path: Path) -> None:
    kept, judged = (Probe(kind="locality", prompt=f"The capital of {name} is", split="tune") for name in ("Oz", "Ur"))
    probes = (kept, judged, Probe(kind="paraphrase", prompt="Where does Nod rule from?"))
    edits = Edit(prompt="The capital of Nod is", subject="Nod", target_new="Lyon", probes=probes)
    other = Edit(prompt="The capital of Mordor is", subject="Mordor", target_new="Lyon", probes=(judged,))
    for name, edit in (("edits", edits), ("judged", other)):
        (tmp_path / f"{name}.yaml").write_text(Patch(name=name, edits=(edit,)).dump(), encoding="utf-8")
    files = [tmp_path / "edits.yaml"], [], None, None, 1, [tmp_path / "judged.yaml"]
    (found,) = TrainingInputs(tiny_base(), *files, None, 0).edits
    assert found.probes == (kept,)


def test_data_sets_and_the_stores_pool_are_trained_on_without_what_is_judged(
    program: Program, initialised: Path, tmp_path: Path
) -> None:
    store, facts, pool = pooled(initialised)
    judged, data = tmp_path / "judged", tmp_path / "data.json"
    judged.mkdir()
    listed = Edit(prompt="The capital of Mordor is", subject="Mordor", target_new="Lyon")
    (judged / "one.yaml").write_text(Patch(name="one", edits=(listed,)).dump(), encoding="utf-8")
    (judged / "two.json").write_text(json.dumps([record("Gondor")]), encoding="utf-8")
    held_out = next(known.fact.subject.name for known in pool.known if side_of(known.fact) == "held_out")
    names = ("Atlantis", "Mordor", "gondor", held_out, "Narnia", "beyond the limit")
    data.write_text(json.dumps([record(name) for name in names]), encoding="utf-8")
    drawn = {edit.subject for edit in pool_edits(pool, facts, 6)}
    out, texts = tmp_path / "network", tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    train = ("hypernet", "train", "--out", out, "--model", store.site().model, "--store", store.url, "--count", 6)
    train += ("--data", data, "--limit", 5, "--judged", judged, "--set", "rank=4", *QUICK)
    lacking = program(*train)
    assert lacking.code == 1
    assert "has no text of the model's own" in lacking.err
    another = program(*train[:5], save_tiny("qwen2", tmp_path / "another"), *train[6:])
    assert another.code == 1
    assert "is not the base of" in another.err
    ran = program(*train, "--texts", texts, "--json")
    assert ran.code == 0, ran.err
    assert "3 of 11 edits are about judged subjects" in ran.err
    assert (ran.json["edits"], ran.json["subjects"]) == (8, 2 + len(drawn))


def test_a_training_that_is_interrupted_leaves_the_best_network_so_far(
    program: Program, files: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, patch, texts = files
    out = tmp_path / "network"

    def interrupt(progress: NetworkTrainingState) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(hypernet, "_print_validation", interrupt)
    train = ("hypernet", "train", "--out", out, "--model", model, "--edits", patch, "--texts", texts)
    assert program(*train, "--set", "rank=4", *QUICK).code != 0
    shown = program("hypernet", "info", out, "--json").json
    assert (shown["best_step"], shown["subjects"]) == (2, 7)


def pooled(folder: Path) -> tuple[Store, Facts, Pool]:
    """A store whose model knows all capitals in English."""
    (folder / "pool.json").unlink()  # of a random model, which knows nothing
    store, facts = Store.open(folder), Facts.load(tables_folder())
    capitals = facts.by_relation["countries.capital"]
    pool = Pool(tuple(Known(fact, fact.relation.trained[:1]) for fact in capitals), {})
    store.keep("pool", pool.as_record())
    return store, facts, pool


def record(name: str) -> dict[str, str]:
    return {"prompt": f"The capital of {name} is", "subject": name, "target_new": "Lyon", "ground_truth": "Paris"}


def test_another_model_than_atlas_needs_edits(program: Program, files: tuple[str, str, str], tmp_path: Path) -> None:
    ran = program("hypernet", "train", "--out", tmp_path / "network", "--model", files[0])
    assert ran.code == 1
    assert "needs edits: give --store URL" in ran.err


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
