"""A group of commands about one noun: how all of them show help and errors."""

from __future__ import annotations

import typer


def group(help: str) -> typer.Typer:
    """An empty group. Its help is plain text, where square brackets are no markup; errors are told by `main`."""
    return typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=help)
