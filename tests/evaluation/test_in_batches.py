"""Evaluating many patches in batches: the report equals that of a single run after any interruption, without repeated
work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.evaluation.conftest import Compile
from vllm_edit.errors import EditError
from vllm_edit.evaluation.asking import ask
from vllm_edit.evaluation.evaluate import EvaluationSettings, evaluate
from vllm_edit.evaluation.in_batches import evaluate_in_batches, identity
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.report import MODES, Mode, Report
from vllm_edit.evaluation.requests import One
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.sheet import Sheet
from vllm_edit.evaluation.time_left import TimeLeft, shown
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress

SETTINGS = EvaluationSettings(max_tokens=4, latency=0, answers=True)


class Attempts:
    """Compiles at random, refuses the third patch, and stops like a user when `until` patches were tried."""

    def __init__(self, compile_random: Compile, until: int = 99) -> None:
        self._compile, self._until = compile_random, until
        self.tried: list[str] = []

    def __call__(self, patches: Sequence[Patch], progress: Progress) -> list[One]:
        made: list[One] = []
        for place, patch in enumerate(patches):
            if len(self.tried) == self._until:
                raise KeyboardInterrupt
            self.tried.append(patch.name)
            progress("training", place, len(patches))
            compiled = self._compile(patch, int(patch.name[-1]))
            refused = patch.name == "edit-2"
            made.append(Refused(patch, "it does not lead", compiled.demonstrations) if refused else compiled)
        return made


@pytest.fixture
def patches(patch: Patch) -> list[Patch]:
    return [patch.model_copy(update={"name": f"edit-{number}"}) for number in range(5)]


@pytest.fixture
def runner(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> HFRunner:
    return HFRunner(llama, tokenizer)


def same(one: Report, other: Report) -> bool:
    """True if both reports agree, except for seconds and for rounding of losses in other batches."""
    values = [[number for m in report.measures for number in (m.value, m.low, m.high)] for report in (one, other)]
    costs = [[(cost.mode, cost.answers, cost.tokens_added) for cost in report.costs] for report in (one, other)]
    rest = [report.model_copy(update={"measures": (), "costs": ()}) for report in (one, other)]
    metrics = [[(m.mode, m.metric, m.protocol, m.n, m.edits, m.refused) for m in r.measures] for r in (one, other)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert metrics[0] == metrics[1]
    assert costs[0] == costs[1]
    return rest[0] == rest[1]


def test_batches_report_the_same_as_a_single_run(
    patches: list[Patch], compile_random: Compile, runner: HFRunner
) -> None:
    attempts = Attempts(compile_random)
    reported: list[tuple[str, int, int]] = []
    found = evaluate_in_batches(
        patches, attempts, runner, MODES, SETTINGS, progress=lambda *one: reported.append(one), size=2
    )
    whole = evaluate(Attempts(compile_random)(patches, lambda *one: None), runner, MODES, SETTINGS)
    assert same(found, whole)
    assert found.refused == {"edit-2": "it does not lead"}
    assert {total for _, _, total in reported} == {5}
    assert [done for _, done, _ in reported] == sorted(done for _, done, _ in reported)
    assert any(what.startswith("compile, training") for what, _, _ in reported)
    assert any("left" in what for what, _, _ in reported)


def test_an_interrupted_run_resumes(
    patches: list[Patch], compile_random: Compile, runner: HFRunner, tmp_path: Path
) -> None:
    of = identity(patches, MODES, SETTINGS, method="rome")
    path = tmp_path / "folder" / "record.jsonl"
    first = Attempts(compile_random, until=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate_in_batches(patches, first, runner, MODES, SETTINGS, Record.open(path, of), size=2)
    with path.open("ab") as file:
        file.write(b'{"patches": ["edit-2"], "sheets"')  # killed while writing
    second = Attempts(compile_random)
    resumed = evaluate_in_batches(patches, second, runner, MODES, SETTINGS, Record.open(path, of), size=2)
    assert (first.tried, second.tried) == (["edit-0", "edit-1", "edit-2"], ["edit-2", "edit-3", "edit-4"])
    whole = evaluate_in_batches(patches, Attempts(compile_random), runner, MODES, SETTINGS, size=5)
    assert same(resumed, whole)
    third = Attempts(compile_random)
    assert evaluate_in_batches(patches, third, runner, MODES, SETTINGS, Record.open(path, of)) == resumed
    assert third.tried == []


def test_nothing_is_compiled_to_ask_the_base_alone(
    patches: list[Patch], compile_random: Compile, runner: HFRunner
) -> None:
    attempts = Attempts(compile_random, until=0)
    report = evaluate_in_batches(patches, attempts, runner, ("base",), SETTINGS, size=2)
    assert same(report, evaluate(patches, runner, ("base",), SETTINGS))
    assert attempts.tried == []


def test_a_misspelt_mode_is_refused_before_anything_is_compiled(
    patches: list[Patch], compile_random: Compile, runner: HFRunner
) -> None:
    misspelt: list[Mode] = ["weigths"]  # type: ignore[list-item]
    attempts = Attempts(compile_random)
    with pytest.raises(EditError, match="expected modes among base, weights, ike, got 'weigths'"):
        evaluate_in_batches(patches, attempts, runner, misspelt, SETTINGS)
    assert attempts.tried == []


def test_the_record_of_another_evaluation_is_refused_with_the_difference(patches: list[Patch], tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    Record.open(path, identity(patches, MODES, SETTINGS, method="rome"))
    with pytest.raises(EditError, match="another evaluation, which differs in max_tokens, method: name another file"):
        Record.open(path, identity(patches, MODES, EvaluationSettings(max_tokens=5), method="mend"))
    path.write_text('{"measures": {}}\n')
    with pytest.raises(EditError, match="differs in form"):
        Record.open(path, {})
    for text in ("no JSON\n", "[1]\n", '{"other": 1}\n'):
        path.write_text(text)
        with pytest.raises(EditError, match="expected the record of an evaluation"):
            Record.open(path, {})


def test_a_record_that_was_killed_before_its_first_line_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_bytes(b'{"measures": {"a"')
    record = Record.open(path, {"a": 1})
    record.add({"b": "é"})
    assert Record.open(path, {"a": 1}).entries == [{"b": "é"}]


def test_a_sheet_survives_its_record(patches: list[Patch], compile_random: Compile, runner: HFRunner) -> None:
    tried = Attempts(compile_random)(patches[1:3], lambda *one: None)
    named = [[patch.edits[0].model_copy(update={"target_new_aliases": ("another name",)})] for patch in patches[1:3]]
    sheets, _ = ask(tried, runner, MODES, SETTINGS, lambda *one: None, edits=named)
    assert sheets[0].questions[0].expected_aliases == ("another name",)
    assert [Sheet.of_record(json.loads(json.dumps(sheet.as_record()))) for sheet in sheets] == sheets
    assert [sheet.refused for sheet in sheets] == ["", "it does not lead"]


def test_names_must_differ(patches: list[Patch], compile_random: Compile, runner: HFRunner) -> None:
    for wrong in ([], [patches[0], patches[0]]):
        with pytest.raises(EditError, match="at least one patch to evaluate, and every name once"):
            evaluate_in_batches(wrong, Attempts(compile_random), runner)


def test_the_time_left_is_that_of_the_rest_at_the_pace_of_this_process() -> None:
    now = [100.0]
    left = TimeLeft(100, 40, clock=lambda: now[0])
    assert left.text(40) == ""
    now[0] += 30
    assert left.text(50) == "about 2 min left"  # 10 in 30 s, 50 to go
    left.skip(5)
    assert left.text(50) == "about 5 min left"  # 5 in 30 s
    assert [shown(seconds) for seconds in (4.4, 90, 3600, 7500)] == ["4 s", "2 min", "1 h 0 min", "2 h 5 min"]
