"""The base of immutable values that pydantic validates: what files, manifests and reports hold."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
