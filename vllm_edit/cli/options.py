"""Arguments and options that several commands share, with the parsers of their values."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

MOST = 10**9
"""Maximum number of requested rows; databases have a limit."""
WAIT_S = 10.0
"""Default of `WaitOption`."""

_GREATEST_SEED = 2**63 - 1
"""The largest seed that torch's generators accept."""
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


def seed_of(text: str) -> int:
    """Parse a whole number that every random number generator accepts."""
    try:
        number = int(text)
    except ValueError:
        number = _GREATEST_SEED + 1
    if not -_GREATEST_SEED <= number <= _GREATEST_SEED:
        raise typer.BadParameter(f"expected a whole number of at most 18 digits, got {text[:80]!r}")
    return number


TenantArgument = Annotated[str, typer.Argument(metavar="TENANT")]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="Folder or URL of the store; $VLLM_EDIT_STORE, else .vllm-edit."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[str | None, typer.Option(help="The store's base model; default: as given to init.")]
BankOption = Annotated[
    Path | None, typer.Option(help="Facts in YAML that the model knows, for IKE; default: the store's.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, e.g. steps=160; may be repeated."),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option("--until", parser=future, metavar="TIME", help="When it expires: 12h, 90d or 2030-01-31T12:00Z."),
]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="Maximum wait until every running server follows; 0: none."),
]
WhoOption = Annotated[str, typer.Option("--who", help="Who does it, for the audit; default: this machine's user.")]
WhyOption = Annotated[str, typer.Option("--why", help="Reason, for the history and the audit.")]
