"""Command groups: common settings for help and errors."""

from __future__ import annotations

import typer


def group(help: str) -> typer.Typer:
    """Return an empty group. Its help is plain text, without markup in square brackets; `ending` reports errors."""
    return typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=help)
