"""Output of commands: JSON on request, else a table or lines; progress goes to stderr, not to stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from vllm_edit.progress import Progress
from vllm_edit.text.printable import printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST_ERROR = 2_000
UNWATCHED_WIDTH = 200
"""Width in columns of rich output to a file or a pipe."""
_UNBOUNDED = 10**9


def print_json(value: object) -> None:
    """Print one JSON document on stdout; in ASCII unless stdout's encoding is UTF-8.

    Args:
        value: JSON values, dataclasses (as objects) and times (in ISO 8601).
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = encoding.lower().replace("-", "") != "utf8"
    print(printable_json(json.dumps(value, ensure_ascii=ascii_only, indent=2, default=_plain)))


def print_json_line(value: object) -> None:
    """Print one JSON document in ASCII on one line of stdout, and flush it: for programs that report as they run."""
    print(printable_json(json.dumps(value, default=_plain)), flush=True)


def print_line(text: str = "", error: bool = False) -> None:
    """Print one line on stdout or stderr and flush it; control characters are escaped."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout; lines are as long as their cells, also on a terminal, so that names can be copied."""
    from rich.table import Table
    from rich.text import Text

    from vllm_edit.cli.console import SafeConsole

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in columns:
        table.add_column(Text(column), no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = SafeConsole(width=_UNBOUNDED)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print_line(line.rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """Print labelled values, one per line, without empty values."""
    given = {label: _cell(value) for label, value in fields.items() if value not in (None, "", ())}
    width = max(map(len, given), default=0)
    for label, value in given.items():
        print_line(f"{label:<{width}}  {value}")


def print_error(message: str) -> None:
    """Print each line of the message on stderr; the middle of a long line, such as quoted content, is cut out."""
    for line in filter(None, message.split("\n")):
        half = _LONGEST_ERROR // 2
        shortened = line if len(line) <= _LONGEST_ERROR else f"{line[:half]} … {line[-half:]}"
        print_line(f"vllm-edit: {shortened}", error=True)


def when(time: datetime) -> str:
    """Format a time for display, in the local zone; in its own zone if the local zone has no such time."""
    with suppress(OverflowError, ValueError):  # within a day of the first or the last representable time
        time = time.astimezone()
    return time.strftime("%Y-%m-%d %H:%M:%S")


def age(seconds: float) -> str:
    """Format a duration for display: `8 s`, `3 min`, `5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min" if seconds < 3600 else f"{seconds // 3600:.0f} h"


def wide_console() -> Console:
    """Return a console on stdout for rich tables: as wide as the terminal, or `UNWATCHED_WIDTH` without one."""
    from vllm_edit.cli.console import SafeConsole

    console = SafeConsole()
    return console if console.is_terminal else SafeConsole(width=UNWATCHED_WIDTH)


@contextmanager
def progress_bar(title: str, every: float = 30) -> Iterator[Progress]:
    """Show a bar on stderr with the elapsed and remaining time of the current step.

    Args:
        title: Text before the bar.
        every: If stderr is not a terminal, print a line instead of the bar, at most one per `every` seconds.

    Yields:
        The function through which a library reports its progress: (what, done, total).
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
        printed = time.monotonic()

        def report(what: str, done: int, total: int) -> None:
            nonlocal printed
            if not watched:
                if time.monotonic() - printed >= every:
                    printed = time.monotonic()
                    print_line(f"{title}: {what}, {done:,} of {total:,}", error=True)
                return
            now = bar.tasks[0]
            if total != now.total or done < now.completed:  # a new step: restart the clock
                bar.reset(task, total=total)
            bar.update(task, description=f"{title}: {what}", completed=done)

        yield report


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _cell(value: object) -> str:
    return "" if value is None else printable(" ".join(str(value).split()))
