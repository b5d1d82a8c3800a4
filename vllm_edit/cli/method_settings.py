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
    """Settings by name; values are read as YAML, and numbers as Python writes them too (`1e-3`)."""
    chosen = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="--set")
        try:
            chosen[key.strip()] = _number(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
            told = " ".join(str(error).split())
            raise typer.BadParameter(f"expected a value in YAML, got {text!r}: {told}", param_hint="--set") from None
    return chosen


def _number(value: Any) -> Any:
    """YAML takes 1e-3 for text, since it has no point."""
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value
