"""Seeds that a user gives."""

from __future__ import annotations

import typer

_MOST = 2**63 - 1
"""The largest that torch's generators take."""


def seed_of(text: str) -> int:
    """A whole number that every generator of random numbers takes."""
    try:
        number = int(text)
    except ValueError:
        number = _MOST + 1
    if not -_MOST <= number <= _MOST:
        raise typer.BadParameter(f"expected a whole number of at most 18 digits, got {text[:80]!r}")
    return number
