"""A table of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HTMLTable:
    """A table with a caption. Columns after the first `words` hold numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: int = 1
