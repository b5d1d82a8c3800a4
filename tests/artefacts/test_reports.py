"""Reports as records: what is written, and what is read of records that another version wrote."""

from __future__ import annotations

import json

import pytest

from vllm_edit.artefacts.reports import CompileReport, CompositionReport, EditReport, GateReport, Interference
from vllm_edit.errors import Corrupt


def edit(number: int, *problems: str) -> EditReport:
    return EditReport(
        edit=number, subject="France", prompt="The capital of France is", target="Lyon", trained_margin=2.0,
        served_margin=1.5, problems=problems,
    )  # fmt: skip


class Measured(EditReport):
    steps: int


def test_a_report_names_the_edits_that_exceed_a_limit() -> None:
    report = CompileReport(edits=(edit(0), edit(1, "too short", "too long")))
    assert report.missed == (1,)
    assert report.problems == (
        "edit 1 ('The capital of France is' → 'Lyon'): too short",
        "edit 1 ('The capital of France is' → 'Lyon'): too long",
    )


def test_a_record_holds_what_was_measured_also_by_a_method_alone() -> None:
    own = Measured(**edit(0, "too short").model_dump(), steps=7)
    record = CompileReport(edits=(own,), norm=0.25, seconds=1.5).as_record()
    assert record == {"edits": [own.model_dump(mode="json")], "norm": 0.25, "seconds": 1.5, "missed": [0]}
    assert record["edits"][0]["steps"] == 7
    assert CompileReport().as_record() == {}


@pytest.mark.parametrize(
    "report",
    [
        CompileReport(edits=(edit(0), edit(1, "too short")), interference=0.1, scales=(1.0, 2.0), rank=3),
        CompositionReport(norm_growth=1.0),
        CompositionReport(
            norm_growth=1.1, constraint_error=0.0, highest_cosine=0.5, pairs=1, kept_energy=0.5,
            interference=(Interference(subjects=("France", "Peru"), prompts=("a", "b"), cosine=0.5),),
        ),
        GateReport(failures=("locality: 0.5",), not_judged="unrelated", default_probes=8),
    ],
)  # fmt: skip
def test_a_report_comes_back_from_its_record(report: CompileReport | CompositionReport | GateReport) -> None:
    assert type(report).of(json.loads(json.dumps(report.as_record()))) == report


def test_unknown_fields_are_ignored_and_missing_fields_have_defaults() -> None:
    assert CompileReport.of({"seconds": 0.25, "health": {"relative_norm": 0.01}}) == CompileReport(seconds=0.25)
    assert GateReport.of({"accepted": True}) == GateReport()


@pytest.mark.parametrize(
    ("record", "where"), [([], "the record"), ({"seconds": "long"}, "seconds"), ({"edits": [{}]}, "edits.0.edit")]
)
def test_a_record_that_is_no_report_is_refused(record: object, where: str) -> None:
    with pytest.raises(Corrupt, match=rf"expected a CompileReport; got another record \({where}: "):
        CompileReport.of(record)  # type: ignore[arg-type]
