"""`vllm-edit eval` on a tiny model measures, records and shows a stored patch, and reports mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.program import Program
from tests.pages.examples import problems
from tests.tiny import save_tiny, tiny_tokenizer
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.patch import Patch
from vllm_edit.store.store import Store

PATCH = """
name: capital
base: tiny
edits:
  - prompt: The capital of France is
    subject: France
    relation: capital
    target_new: Berlin
    target_true: Paris
    probes:
      - {kind: paraphrase, prompt: "What is the capital of France?"}
      - {kind: locality, prompt: The capital of Japan is, target: Tokyo}
"""


@pytest.fixture
def url(initialised: Path) -> Path:
    """A store of a tiny model with one patch in it; its delta is random: answers change, but not to the right ones."""
    store, patch = Store.open(initialised), Patch.parse(PATCH)
    site, random = store.site(), torch.Generator().manual_seed(0)
    delta = Delta(
        {
            site.module: LowRank(
                torch.randn(site.d_out, 1, generator=random), torch.randn(1, site.d_in, generator=random)
            )
        }
    )
    manifest = Manifest(
        patch=patch.name,
        method="rome",
        base=site.base.digest,
        site=site.digest,
        modules=site.modules,
        edits=patch.edits,
        rank=1,
        adapter=delta.digest,
        factors=None,
        demonstrations=None,
    )
    store.save(with_demonstrations(CompiledPatch(manifest, delta), Bank(), tiny_tokenizer()))
    return initialised


def test_a_stored_patch_is_measured_recorded_and_shown(program: Program, url: Path, tmp_path: Path) -> None:
    ran = program("eval", "capital", "--store", url, "--json", "--answers", "--max-tokens", 4)
    assert ran.code == 0, ran.err
    found = {(m["metric"], m["mode"], m["protocol"]): m["value"] for m in ran.json["measures"]}
    for mode in ("base", "weights", "ike"):
        assert found["reliability", mode, "generation"] == 0.0
        assert ("ES", mode, "nll") in found
    assert found["locality", "weights", "generation"] == 0.0, "a large random delta changes every answer"
    assert {answer["metric"] for answer in ran.json["answers"]} >= {"reliability", "paraphrase", "locality"}

    store = Store.open(url)
    assert ran.json["drift"]["texts"] == len(store.passages()) > 0
    assert ran.json["drift"]["value"] > 0.01, "a large random delta moves ordinary text"
    (record,) = store.records(store.resolve("capital"), "report")
    assert record.data["measures"] == ran.json["measures"]

    page = tmp_path / "page.html"
    shown = program("eval", "capital", "--store", url, "--mode", "base,weights", "--html", page)
    assert shown.code == 0, shown.err
    assert "reliability" in shown.out
    assert f"drift {ran.json['drift']['value']:+.2%}" in shown.out
    assert " ike" not in shown.out
    written = page.read_text(encoding="utf-8")
    assert problems(written) == []
    assert "1 edit by rome, gate probes" in written
    assert "Answers before and after" in written, "also without --answers"
    assert "answers" not in shown.out

    wrong = program("eval", "capital", "--store", url, "--model", save_tiny("llama", tmp_path / "other", seed=1))
    assert (wrong.code, wrong.err.count("\n")) == (1, 1)
    assert "is not the base of" in wrong.err


@pytest.mark.slow
def test_a_data_set_is_compiled_edit_by_edit_and_refusals_are_reported(
    program: Program, url: Path, tmp_path: Path
) -> None:
    records = [{"subject": "France", "prompt": "The capital of France is", "target_new": "Berlin"}] * 3
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    ran = program("eval", data, "--limit", 2, "--store", url)
    assert ran.code == 1
    assert "nothing could be compiled" in ran.err
    assert "edit-1" in ran.err
    assert "edit-2" not in ran.err


def test_records_that_are_no_edit_are_counted_and_listed_with_their_reason(
    program: Program, url: Path, tmp_path: Path
) -> None:
    records = [
        {"subject": "France", "prompt": "The capital of France is", "target_new": "Berlin"},
        {"subject": None, "prompt": "The capital of France is", "target_new": "Berlin"},
        {"subject": "Japan", "prompt": "The capital of Japan is", "target_new": 1990},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, records)), encoding="utf-8-sig")
    asked = ("eval", data, "--store", url, "--mode", "base", "--max-tokens", 2)
    ran = program(*asked, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["edits"], ran.json["left_out"]) == (
        1,
        [
            {"index": 1, "reason": "subject: expected text, got null"},
            {"index": 2, "reason": "target_new: expected an answer, got 1990"},
        ],
    )
    shown = program(*asked)
    assert "records that are not edits: 2, the first record 1: subject: expected text, got null" in shown.out


def test_rewrites_of_one_record_are_measured_together(program: Program, url: Path, tmp_path: Path) -> None:
    rewrites = [
        {"prompt": "The capital of {} is", "subject": country, "target_new": {"str": new}, "question": f"{country}?"}
        for country, new in (("France", "Berlin"), ("Japan", "Paris"))
    ]
    record = {"requested_rewrite": rewrites, "questions": ["Where does one rule?"], "new_answer": "Berlin"}
    data = tmp_path / "mquake.json"
    data.write_text(json.dumps([record, record]))
    ran = program("eval", data, "--store", url, "--mode", "base", "--max-tokens", 2, "--json", "--limit", 1)
    assert ran.code == 0, ran.err
    assert (ran.json["patches"], ran.json["edits"]) == (["edit-0"], 2)
    counted = {
        measure["metric"]: measure["n"] for measure in ran.json["measures"] if measure["protocol"] == "generation"
    }
    assert (counted["reliability"], counted["paraphrase"], counted["portability:multi_hop"]) == (2, 2, 1)


def test_settings_of_the_method_are_taken(program: Program, url: Path, tmp_path: Path) -> None:
    records = [
        {"subject": country, "prompt": f"The capital of {country} is", "target_new": "people"}
        for country in ("France", "Japan")
    ]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    asked = ("eval", data, "--store", url, "--mode", "weights", "--max-tokens", 2, "--json")
    ran = program(*asked, "--set", "steps=1", "--set", "on_missed=report")
    assert ran.code == 0, ran.err
    assert (ran.json["edits"], ran.json["refused"], ran.json["drift"]) == (2, {}, None)
    wrong = program(*asked, "--set", "stepz=1")
    assert (wrong.code, wrong.err.count("\n")) == (1, 1)
    assert "unknown settings stepz" in wrong.err


def test_mistakes_are_reported_in_one_line(program: Program, store: Store, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[{}]")
    (tmp_path / "notes.txt").write_text("notes")
    for arguments, message in [
        (("capital", "--mode", "weight"), "expected modes among base, weights, ike"),
        (("absent",), "no compiled patch 'absent'"),
        (("capital", "--html", tmp_path / "absent" / "page.html"), "there is no folder"),
        (("capital", "--html", tmp_path), "expected a file to write the page into"),
        (("capital", "--html", tmp_path / "data.json"), "expected a page named *.html or *.htm; got"),
        ((tmp_path / "data.json", "--record", tmp_path / "data.json"), "names the data set"),
        ((tmp_path / "absent.yaml",), "no such file"),
        ((tmp_path / "absent.YAML",), "no such file"),
        ((tmp_path / "notes.txt",), "is a file; expected a patch named *.yaml or *.yml, or a compiled patch's name"),
        ((tmp_path / "absent.json",), "expected a JSON data set"),
    ]:
        ran = program("eval", *arguments)
        assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
        assert message in ran.err
    assert (tmp_path / "data.json").read_text() == "[{}]"
