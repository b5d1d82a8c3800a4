"""Ways to damage a file, drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@st.composite
def damaged(draw: st.DrawFn, intact: bytes) -> bytes:
    """The bytes of a file with one of them changed, or cut at some length."""
    place = draw(st.integers(0, len(intact) - 1))
    if draw(st.booleans()):
        return intact[:place]
    return intact[:place] + bytes([intact[place] ^ draw(st.integers(1, 255))]) + intact[place + 1 :]


def for_every(check: Callable[[Any], None], drawn: st.SearchStrategy[Any], examples: int) -> int:
    """Check `examples` drawn values; returns how many there were (equal values are drawn once)."""
    count = 0

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn)
    def each(one: Any) -> None:
        nonlocal count
        count += 1
        check(one)

    each()
    return count


@contextmanager
def holding(path: Path, data: bytes) -> Iterator[None]:
    """Inside the block the file holds other bytes than its own."""
    intact = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(intact)
