"""The base of what a patch file declares."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Declared(BaseModel):
    """Base of what a file declares. Fields in `_ADDED` are newer; they are not written if they have their default.

    Names of compiled patches are digests of the written form, and must not change with a new field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, use_attribute_docstrings=True)
    _ADDED: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for name in self._ADDED:
            if getattr(self, name) == type(self).model_fields[name].default:
                data.pop(name, None)
        return data
