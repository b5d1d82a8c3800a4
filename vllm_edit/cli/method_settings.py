"""`--set KEY=VALUE`: settings of an editing method, for every command that compiles."""

from __future__ import annotations

from typing import Any

import typer
import yaml


def method_settings(given: list[str] | None) -> dict[str, Any]:
    """Parse settings by name; values are YAML, or numbers in Python's notation (`1e-3`)."""
    chosen = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="--set")
        try:
            chosen[key.strip()] = _number(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an invalid date
            reason = " ".join(str(error).split())
            raise typer.BadParameter(f"expected a value in YAML, got {text!r}: {reason}", param_hint="--set") from None
    return chosen


def _number(value: Any) -> Any:
    """Convert numbers that YAML reads as text, such as 1e-3 (no decimal point)."""
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value
