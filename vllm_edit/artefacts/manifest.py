"""The manifest of a compiled patch: its edits, settings and contents. Its digest is the patch's identity."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from vllm_edit.digest import digest_json
from vllm_edit.edit import Edit
from vllm_edit.frozen import Frozen
from vllm_edit.json_value import JSONObject
from vllm_edit.patch import Gate, Scope


class Column(Frozen):
    """One column of K: the key of one form of one key group. All columns of a group share the group's residual."""

    group: int = Field(description="index of the key group")
    form: str = Field(description="which form of the prompt gave this key: plain, chat, alias:…, tune:…, keep:…")
    share: float = Field(1.0, description="Δ·key in units of the group's residual: 1, or 0 for a preserved key")
    module: int = Field(0, description="index of the edited module whose input the key is, among the site's")

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the module if it is the first, so that the names of patches at one module stay the same."""
        data: dict[str, Any] = handler(self)
        if not self.module:
            data.pop("module", None)
        return data


class KeyGroup(Frozen):
    """Edits whose keys nearly coincide; they share columns and one residual."""

    edits: tuple[int, ...] = Field(min_length=1, description="indices into the manifest's edits")


class Manifest(Frozen):
    """Everything that identifies a compiled patch or composition; tensors by digest. No times, paths or results."""

    kind: Literal["patch", "composition"] = "patch"
    patch: str
    method: str
    base: str = Field(description="digest of the base's fingerprint")
    site: str = Field(description="digest of the site")
    modules: tuple[str, ...]
    edits: tuple[Edit, ...]
    gate: Gate = Gate()
    scope: Scope = Field("all", description="subject: its members are its subjects' compiled patches, in its own files")
    members: tuple[str, ...] = Field(default=(), description="names of the compiled patches that it consists of")
    settings: JSONObject = Field(default_factory=dict, description="all settings of the method")
    groups: tuple[KeyGroup, ...] = ()
    columns: tuple[Column, ...] = ()
    rank: int = Field(description="rank of the adapter; with scope subject the highest rank of its members")
    adapter: str | None = Field(description="digest of the adapter's tensors; None with scope subject")
    factors: str | None = Field(None, description="digest of the factors' tensors; None if the method has none")
    demonstrations: str | None = Field(None, description="digest of the IKE demonstrations")

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit newer fields that have their default, so that the names of existing patches stay the same."""
        data: dict[str, Any] = handler(self)
        if self.scope == "all":
            data.pop("scope", None)
        return data

    @property
    def damping(self) -> float:
        """λ of the closed-form solve; 0 for a method without it."""
        damping = self.settings.get("damping")
        return float(damping) if isinstance(damping, int | float) else 0.0

    @property
    def room(self) -> float | None:
        """Maximum number of preserved columns in units of d_in; None: the solver's own."""
        room = self.settings.get("room")
        return float(room) if isinstance(room, int | float) else None

    @property
    def null_space(self) -> float | None:
        """AlphaEdit's threshold; None for a method whose solver uses the second moment's inverse."""
        threshold = self.settings.get("null_space")
        return float(threshold) if isinstance(threshold, int | float) else None

    @cached_property
    def digest(self) -> str:
        """The manifest's digest. Cached, because every request reads its patch's name."""
        return digest_json(self.model_dump(mode="json"))

    @property
    def valid_until(self) -> datetime | None:
        """The earliest expiry of its edits: removing a single edit would need a new solve."""
        return min((edit.valid_until for edit in self.edits if edit.valid_until is not None), default=None)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy without the cached digest, since fields of the copy may differ."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        return copied

    @property
    def name(self) -> str:
        """`<patch>@<digest>`: the artefact's name everywhere, also the adapter's name inside vLLM."""
        return f"{self.patch}@{self.digest}"
