"""`--set KEY=VALUE`: settings of an editing method, as every command that compiles takes them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, e.g. steps=160; may be repeated."),
]


def method_settings(given: list[str] | None) -> dict[str, Any]:
    """Settings by name; values are read as YAML."""
    chosen = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="--set")
        chosen[key.strip()] = yaml.safe_load(value)
    return chosen
