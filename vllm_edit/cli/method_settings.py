"""`--method` and `--set KEY=VALUE`: an editing method and its settings, for every command that compiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.text.yaml_document import NotYaml, YamlDocument

if TYPE_CHECKING:
    from vllm_edit.store.store import Store


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
        if key.strip() in chosen:
            raise typer.BadParameter(f"{key.strip()} is given twice; give it once", param_hint="--set")
        chosen[key.strip()] = cast("JSONValue", parsed)  # the method's settings refuse dates, which are not JSON
    return chosen


def method_in(store: Store | Path | str | None, method: str, settings: JSONObject) -> str:
    """The method, found in the store for `auto`, and checked with its settings before a model is loaded.

    Raises:
        EditError: the method or a setting is unknown.
    """
    from vllm_edit.editing.compile import AUTO, method_at, method_of, settings_of
    from vllm_edit.editing.site_tensors import site_tensors_of
    from vllm_edit.store.store import Store

    if method == AUTO:
        opened = store if isinstance(store, Store) else Store.open(store)
        method = method_at(method, site_tensors_of(opened.site(), opened.site_tensors()))
    settings_of(method_of(method), settings)
    return method
