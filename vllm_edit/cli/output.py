"""What commands print: JSON on request, else a table or lines; progress goes to stderr, so stdout stays readable."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_edit.editing.settings import Progress
from vllm_edit.printable import printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST_ERROR = 2_000
UNWATCHED_WIDTH = 200
"""Columns of rich output that goes to a file or a pipe."""

StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Folder or URL of the store; $VLLM_EDIT_STORE, else .vllm-edit."),
]
WhoOption = Annotated[str, typer.Option("--who", help="Who does it, for the audit; default: this machine's user.")]
WhyOption = Annotated[str, typer.Option("--why", help="Reason, kept in the history and in the audit.")]
MOST = 10**9
"""Rows that anybody may ask for: databases take no number at will."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """One JSON document on stdout; times as ISO 8601. In ASCII where stdout's encoding is not UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = encoding.lower().replace("-", "") != "utf8"
    print(printable_json(json.dumps(value, ensure_ascii=ascii_only, indent=2, default=_plain)))


def print_line(text: str = "", error: bool = False) -> None:
    """One line on stdout, or on stderr, at once; control characters are escaped."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout, as wide as it needs to be: nothing is ever cut, so that names can be copied."""
    from rich.cells import cell_len  # ideographs are two cells wide

    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(cell_len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        print_line("  ".join(padded).rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """Labelled values, one per line; empty ones are left out."""
    given = {label: _cell(value) for label, value in fields.items() if value not in (None, "", ())}
    width = max(map(len, given), default=0)
    for label, value in given.items():
        print_line(f"{label:<{width}}  {value}")


def print_error(message: str) -> None:
    """One line on stderr for each line of the message. What a file says may be long: its middle is left out."""
    for line in filter(None, message.split("\n")):
        half = _LONGEST_ERROR // 2
        told = line if len(line) <= _LONGEST_ERROR else f"{line[:half]} … {line[-half:]}"
        print_line(f"vllm-edit: {told}", error=True)


def when(time: datetime) -> str:
    """A time for people, in their zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(seconds: float) -> str:
    """How long something lasts, for people: `8 s`, `3 min`, `5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min" if seconds < 3600 else f"{seconds // 3600:.0f} h"


def wide_console() -> Console:
    """stdout for rich tables: as wide as the terminal, and where there is none, wide enough that nothing is cut."""
    from vllm_edit.cli.console import SafeConsole

    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=UNWATCHED_WIDTH)


@contextmanager
def progress_bar(title: str, every: float = 30) -> Iterator[Progress]:
    """A bar on stderr while a library reports (what, done, of how many), with the time taken and the time left of what
    is being done now.

    every: seconds. Where stderr is no terminal, as in a log, a line is written instead, at most one in so many seconds.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from vllm_edit.cli.console import SafeConsole

    title = printable(title)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    console = SafeConsole(stderr=True)
    watched = console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=not watched, speed_estimate_period=300) as bar:
        task = bar.add_task(title, total=None)
        told = time.monotonic()

        def report(what: str, done: int, total: int) -> None:
            nonlocal told
            if not watched:
                if time.monotonic() - told >= every:
                    told = time.monotonic()
                    print_line(f"{title}: {what}, {done:,} of {total:,}", error=True)
                return
            now = bar.tasks[0]
            if total != now.total or done < now.completed:  # something else is done now: the clock starts anew
                bar.reset(task, total=total)
            bar.update(task, description=f"{title}: {what}", completed=done)

        yield report


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _cell(value: object) -> str:
    return "" if value is None else printable(" ".join(str(value).split()))
