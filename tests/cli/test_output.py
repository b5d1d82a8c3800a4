"""Output without a terminal: whole tables, and progress as lines."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.table import Table

from vllm_edit import cli
from vllm_edit.atlas.training import TrainingState
from vllm_edit.cli.atlas import plain_lines
from vllm_edit.cli.output import (
    print_error,
    print_fields,
    print_json,
    print_line,
    print_table,
    progress_bar,
    when,
    wide_console,
)
from vllm_edit.evaluation.report import Answer, Report
from vllm_edit.evaluation.table import table


def test_a_table_is_not_cut_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(*(f"column {number}" for number in range(6)))
    cells = [f"cell {number} with twenty-four" for number in range(6)]
    table.add_row(*cells)
    wide_console().print(table)
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in cells)
    assert len(printed.splitlines()) == 5


def test_the_cells_of_a_list_are_whole_and_one_below_the_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    long = "x" * 5000
    print_table(("NAME", "WHY"), [(long, "[b] :smile:"), ("法國", None), ("two\nlines", 7)])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == f"NAME{' ' * 4998}WHY"
    assert rows == [f"{long}  [b] :smile:", "法國", f"two lines{' ' * 4993}7"]
    print_table(("NAME", "WHY"), [])
    assert capsys.readouterr().out == "NAME  WHY\n"


def test_long_work_reports_progress_if_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("store init", every=0) as progress:
        progress("trying layers", 3, 1200)
    printed = capsys.readouterr()
    assert printed.err == "store init: trying layers, 3 of 1,200\n"
    assert not printed.out


def test_short_work_reports_nothing_if_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("compile") as progress:
        progress("optimising", 1, 2)
    assert not capsys.readouterr().err


def test_training_reports_its_first_and_last_step_and_some_in_between() -> None:
    lines: list[str] = []
    tell = plain_lines(lines.append, every_s=30)
    for step in range(1, 11):
        tell(TrainingState(step, 10, 1.5, 8.0 * step, None))
    assert [line.split(":")[0] for line in lines] == ["step 1/10", "step 5/10", "step 9/10", "step 10/10"]
    assert lines[0] == "step 1/10: loss 1.500, 8 s"
    assert lines[1] == "step 5/10: loss 1.500, 40 s"


def test_lines_continue_after_a_slow_step() -> None:
    lines: list[str] = []
    tell = plain_lines(lines.append, every_s=30)
    for step, seconds in enumerate((90.0, 91.0, 119.0, 121.0, 122.0, 300.0, 301.0), start=1):
        tell(TrainingState(step, 100, 1.5, seconds, None))
    assert [line.split(":")[0] for line in lines] == ["step 1/100", "step 4/100", "step 6/100"]


HOSTILE = "a\x1b]0;owned\x07b\x9b31m c\u202ed\ud83d"
SHOWN = "a\\x1b]0;owned\\x07b\\x9b31m c\\u202ed\\ud83d"


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_the_last_and_the_first_time_are_shown_in_every_local_zone(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.setenv("TZ", zone)
        time.tzset()
        assert when(datetime.max.replace(tzinfo=UTC))[:10] == "9999-12-31"
        assert when(datetime.min.replace(tzinfo=UTC))[-11:-8] == "01 "
    time.tzset()


def test_control_characters_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME",), [(HOSTILE,)])
    print_fields({"prompt": HOSTILE})
    print_line(HOSTILE)
    printed = capsys.readouterr().out
    assert printed == f"NAME\n{SHOWN}\nprompt  {SHOWN}\n{SHOWN}\n"
    print_error(f"{HOSTILE}\nand more")
    assert capsys.readouterr().err == f"vllm-edit: {SHOWN}\nvllm-edit: and more\n"


def test_an_error_that_quotes_a_long_text_is_cut_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(f"l.yaml: line 3: prompt: expected less (got {'x' * 100_000!r})")
    printed = capsys.readouterr().err
    assert len(printed) < 2_100
    assert printed.startswith("vllm-edit: l.yaml: line 3: prompt: ")
    assert printed.endswith("x')\n")


def test_json_holds_none_either_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"prompt": HOSTILE, "answer": ["\x7f\u2028\\x1b", "法國"]}
    print_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert "法國" in printed
    assert {unicodedata.category(character) for character in printed.replace("\n", "")}.isdisjoint(
        {"Cc", "Cf", "Cs", "Zl"}
    )


def test_a_rich_table_shows_clients_text_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = HOSTILE.removesuffix("\ud83d")
    answer = Answer(
        patch="x@1",
        edit=0,
        subject="France",
        relation="[/b]",
        metric="reliability",
        tag="",
        prompt=f"[/b] :smile: {hostile}",
        chat=False,
        expected="[bold]",
        texts={"base": "[/x]\x1b"},
        right={"base": True},
    )
    report = Report(
        patches=("x@1",),
        engine="hf",
        modes=("base",),
        edits=1,
        split="gate",
        max_tokens=16,
        measures=(),
        relations={"[/b]": (), ":x:": ()},
        answers=(answer,),
    )
    shown = SHOWN.removesuffix("\\ud83d")
    wide_console().print(table(report))
    printed = capsys.readouterr().out
    assert f"[/b] :smile: {shown}" in printed
    assert "[/x]\\x1b" in printed
    assert not set("\x1b\x07\x9b\u202e") & set(printed)


def test_a_title_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("[/x]\x1b", every=0) as progress:
        progress("compiling", 1, 2)
    assert capsys.readouterr().err == "[/x]\\x1b: compiling, 1 of 2\n"


def test_no_command_prints_past_these_functions() -> None:
    """`print`, `typer.echo` and rich's own console would pass control characters to the terminal."""
    raw = re.compile(r"(?<![\w.])print\(|typer\.echo\(|(?<![\w])Console\(")
    files = [path for path in Path(cli.__file__).parent.glob("*.py") if path.name not in ("output.py", "console.py")]
    found = [f"{path.name}: {line.strip()}" for path in files for line in path.read_text("utf-8").splitlines()
             if raw.search(line)]  # fmt: skip
    assert not found
