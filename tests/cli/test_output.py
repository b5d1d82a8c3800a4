"""What commands print where nobody is watching: whole tables, and progress as lines."""

from __future__ import annotations

import pytest
from rich.table import Table

from vllm_edit.atlas.training import Progress
from vllm_edit.cli.atlas import plain_lines
from vllm_edit.cli.output import progress_bar, wide_console


def test_a_table_is_not_cut_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(*(f"column {number}" for number in range(6)))
    cells = [f"cell {number} with twenty-four" for number in range(6)]
    table.add_row(*cells)
    wide_console().print(table)
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in cells)
    assert len(printed.splitlines()) == 5


def test_long_work_tells_how_far_it_is_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("store init", every=0) as progress:
        progress("trying layers", 3, 1200)
    printed = capsys.readouterr()
    assert printed.err == "store init: trying layers, 3 of 1,200\n"
    assert not printed.out


def test_short_work_tells_nothing_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("compile") as progress:
        progress("optimising", 1, 2)
    assert not capsys.readouterr().err


def test_training_tells_its_first_and_last_step_and_one_in_between_every_so_often() -> None:
    lines: list[str] = []
    tell = plain_lines(lines.append, every_s=30)
    for step in range(1, 11):
        tell(Progress(step, 10, 1.5, 8.0 * step, None))
    assert [line.split(":")[0] for line in lines] == ["step 1/10", "step 5/10", "step 9/10", "step 10/10"]
    assert lines[0] == "step 1/10: loss 1.500, 8 s"
    assert lines[1] == "step 5/10: loss 1.500, 40 s"


def test_lines_go_on_after_a_slow_step() -> None:
    lines: list[str] = []
    tell = plain_lines(lines.append, every_s=30)
    for step, seconds in enumerate((90.0, 91.0, 119.0, 121.0, 122.0, 300.0, 301.0), start=1):
        tell(Progress(step, 100, 1.5, seconds, None))
    assert [line.split(":")[0] for line in lines] == ["step 1/100", "step 4/100", "step 6/100"]
