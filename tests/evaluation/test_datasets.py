"""Readers of public data sets, on hand-made records of each form and on the real slices where those are present."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vllm_edit.datasets import read_edits
from vllm_edit.errors import EditError
from vllm_edit.patch import Edit, Patch, Probe

DATA = Path(os.environ.get("VLLM_EDIT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def read(tmp_path: Path, *records: dict[str, Any]) -> list[Edit]:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return read_edits(path)


def test_original_counterfact(tmp_path: Path) -> None:
    record = {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Danielle Darrieux",
            "target_new": {"str": "English", "id": "Q1860"}, "target_true": {"str": "French", "id": "Q150"},
        },
        "paraphrase_prompts": ["Danielle Darrieux, a native"],
        "neighborhood_prompts": ["The native language of Montesquieu is"],
    }  # fmt: skip
    assert read(tmp_path, record) == [
        Edit(
            prompt="The mother tongue of Danielle Darrieux is",
            subject="Danielle Darrieux",
            relation="P103",
            target_new="English",
            target_true="French",
            probes=(
                Probe(kind="paraphrase", prompt="Danielle Darrieux, a native"),
                Probe(kind="locality", prompt="The native language of Montesquieu is", target="French"),
            ),
        )
    ]


def test_zsre_takes_the_first_answer_and_strips_the_name_of_its_source(tmp_path: Path) -> None:
    record = {
        "subject": "munich", "src": "Who governs Munich?", "pred": "x", "rephrase": "Who leads Munich?",
        "alt": "Bruno Granier", "answers": ["Dieter Reiter"], "loc": "nq question: who made the song",
        "loc_ans": "Reel 2",
    }  # fmt: skip
    [edit] = read(tmp_path, record)
    assert (edit.subject, edit.target_new, edit.target_true) == ("Munich", "Bruno Granier", "Dieter Reiter")
    assert edit.probes_of("unrelated") == [Probe(kind="unrelated", prompt="who made the song", target="Reel 2")]


def test_knowedit_values_may_be_strings_lists_or_lists_of_aliases(tmp_path: Path) -> None:
    record = {
        "subject": "Tamm", "prompt": "The gender of Tamm is", "target_new": "female",
        "portability": {"Subject_Aliasing": [{"prompt": "The gender of A. Tamm is", "ground_truth": "female"}]},
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The award of Tamm is", "ground_truth": [[], ["", "Honorary Doctor", "Dr"]]},
                {"prompt": "The siblings of Tamm are", "ground_truth": []},
            ]
        },
    }  # fmt: skip
    [edit] = read(tmp_path, record)
    assert edit.target_true is None
    assert [(p.kind, p.target, p.tag) for p in edit.probes] == [
        ("portability", "female", "subject_aliasing"),
        ("locality_subject", "Honorary Doctor", "relation_specificity"),
        ("locality_subject", None, "relation_specificity"),
    ]


@pytest.mark.parametrize(
    ("prompt", "subject", "read_as"),
    [
        ("The official language of Langu is", "Langu", "Langu"),
        ("The house where the US president lives is in", "US", "US"),
        ("The start of Art Deco was in", "Art", "Art"),
        ("The capital of Côte d’Ivoire is", "Côte d'Ivoire", "Côte d’Ivoire"),
        ("İzmir has the mayor Tunç Soyer since", "tunç soyer", "Tunç Soyer"),
        ("The capital of FRANCE is", "France", "FRANCE"),
    ],
)
def test_a_subject_is_read_as_the_prompt_spells_it(tmp_path: Path, prompt: str, subject: str, read_as: str) -> None:
    [edit] = read(tmp_path, {"prompt": prompt, "subject": subject, "target_new": "Lyon"})
    assert edit.subject == read_as


def test_records_that_are_no_edits_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"subject": "A", "prompt": "A is", "target_new": "b", "ground_truth": "c"}
    same, absent = {**good, "target_new": "c"}, {**good, "subject": "Z"}
    assert len(read(tmp_path, good, same, absent)) == 1
    assert "2 of 3 records are no edits" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"), [("[", "expected a JSON data set"), ("{}", "JSON list"), ('[{"a": 1}]', "the fields a")]
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(EditError, match=message):
        read_edits(path)


@pytest.mark.parametrize(
    ("file", "edits", "kinds"),
    [
        ("counterfact/counterfact-2000.json", 2000, {"paraphrase", "locality"}),
        ("knowedit/ZsRE-test-650.json", 650, {"paraphrase", "portability", "locality_subject"}),
        ("knowedit/wiki_counterfact-700.json", 700, {"portability", "locality_subject"}),
        ("knowedit/wiki_recent-300.json", 300, {"portability", "locality_subject"}),
        ("knowedit/wikibio-100.json", 100, {"locality_subject"}),
        ("zsre/zsre_mend-500.json", 500, {"paraphrase", "unrelated"}),
    ],
)
def test_real_slices_are_read_nearly_whole(file: str, edits: int, kinds: set[str]) -> None:
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is not here; set VLLM_EDIT_DATA to the folder of the public data slices")
    found = read_edits(DATA / file)
    assert 0.95 * edits <= len(found) <= edits
    assert {probe.kind for edit in found for probe in edit.probes} == kinds
    assert len(read_edits(DATA / file, limit=3)) == 3
    Patch(name="single", edits=(found[0],))
