"""Numbers of things in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """ "1 edit", "20 edits": the number with its noun; the plural ends in s unless it is given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
