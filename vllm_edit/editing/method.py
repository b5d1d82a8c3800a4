"""What an editing method is: a function from edits at a site to a delta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_edit.deltas.delta import Delta
from vllm_edit.store.compiled import Factors
from vllm_edit.store.manifest import Column, KeyGroup


@dataclass(frozen=True)
class MethodResult:
    """A method's result: the delta as it will be saved, and what the manifest and the report say about it.

    factors: K, C⁻¹K and residuals where the method is closed-form, so that composing needs no model.
    settings: complete and JSON-able, part of the identity. report: numbers outside the identity.
    """

    delta: Delta
    factors: Factors | None = None
    groups: tuple[KeyGroup, ...] = ()
    columns: tuple[Column, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
