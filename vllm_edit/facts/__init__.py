"""Fact tables: general knowledge with several prompts for each fact. atlas is trained on them; every other model is
asked for them."""

from __future__ import annotations

from pathlib import Path


def tables_folder() -> Path:
    """The folder of the tables that ship with the package."""
    return Path(__file__).parent / "tables"
