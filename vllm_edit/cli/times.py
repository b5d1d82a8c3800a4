"""Parse times of options: absolute, or a duration from now."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_FROM_NOW = re.compile(rf"(\d{{1,6}})([{''.join(_UNITS)}])")


def future(text: str) -> datetime:
    """Parse a duration from now such as `90d`, or a time in ISO 8601, by default in the local zone."""
    now = datetime.now(UTC)
    given = _FROM_NOW.fullmatch(text)
    try:
        time = now + timedelta(**{_UNITS[given[2]]: int(given[1])}) if given else datetime.fromisoformat(text)
        time = time.astimezone(UTC)  # overflows near the first and the last representable day
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"expected 30m, 12h, 90d, 8w or a time like 2030-01-31T12:00Z, got {text!r}") from None
    if time <= now:
        raise typer.BadParameter(f"expected a future time, got {text!r}, which is past")
    return time


UntilOption = Annotated[
    datetime | None,
    typer.Option("--until", parser=future, metavar="TIME", help="When it expires: 12h, 90d or 2030-01-31T12:00Z."),
]
