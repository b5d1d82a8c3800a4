"""The callback by which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (name of the step, completed units, total units)."""


def silent(step: str, done: int, total: int) -> None:
    """Report nothing: the default `Progress`."""
