"""Parse seeds of random number generators."""

from __future__ import annotations

import typer

_MOST = 2**63 - 1
"""The largest seed that torch's generators accept."""


def seed_of(text: str) -> int:
    """Parse a whole number that every random number generator accepts."""
    try:
        number = int(text)
    except ValueError:
        number = _MOST + 1
    if not -_MOST <= number <= _MOST:
        raise typer.BadParameter(f"expected a whole number of at most 18 digits, got {text[:80]!r}")
    return number
