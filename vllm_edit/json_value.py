"""JSON: the values that `json.loads` returns and `json.dumps` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from typing_extensions import TypeAliasType

JSONValue = TypeAliasType(
    "JSONValue", "bool | int | float | str | Sequence[JSONValue] | Mapping[str, JSONValue] | None"
)
"""A value. Its containers are read-only here, so that a `list[str]` or a `dict[str, float]` is one too. The alias has a
name, so that pydantic resolves the recursion."""

JSONObject: TypeAlias = dict[str, JSONValue]
"""An object by field name."""
