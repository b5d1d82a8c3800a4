"""`--set KEY=VALUE`: settings of an editing method, for every command that compiles."""

from __future__ import annotations

from typing import cast

import typer

from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.text.yaml_document import NotYaml, YamlDocument


def method_settings(given: list[str] | None) -> JSONObject:
    """Parse settings by name; values are YAML."""
    chosen: JSONObject = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="--set")
        try:
            parsed = YamlDocument.parse(value).data
        except NotYaml as error:
            raise typer.BadParameter(f"expected a value in YAML, got {text!r}: {error}", param_hint="--set") from None
        chosen[key.strip()] = cast("JSONValue", parsed)  # the method's settings refuse dates, which are not JSON
    return chosen
