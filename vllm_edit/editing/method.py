"""What an editing method is: settings, and a function from edits at a site to a delta."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from vllm_edit.artefacts.compiled import Factors
from vllm_edit.artefacts.manifest import Column, KeyGroup
from vllm_edit.artefacts.site import Site
from vllm_edit.deltas.delta import Delta
from vllm_edit.editing.settings import Progress
from vllm_edit.models.base import Base
from vllm_edit.patch import Edit, Patch, Scope


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


class Settings(Protocol):
    """A method's settings: a frozen dataclass, made of plain values as a CLI or a manifest holds them."""

    @classmethod
    def of(cls, values: Mapping[str, Any], scope: Scope = "all") -> Self:
        """These values and the defaults of that scope. Raises EditError for unknown names and wrong values."""


S = TypeVar("S", bound=Settings)
Compile = Callable[[Base, Site, Any, Sequence[Edit], S, Progress | None], MethodResult]
"""All of a patch's edits together, with what belongs to the site (`Method.needs`). It leaves the base as it was, also
after an exception."""
CompileEach = Callable[[Base, Site, Any, Sequence[Patch], S, Progress | None], list[MethodResult]]
"""Several patches in one batch, each as if it were alone."""


@dataclass(frozen=True)
class Method(Generic[S]):
    """settings: their type. compile: for one patch. compile_each: for many, where that is faster than a loop.

    needs: the type of what belongs to the method's sites; None for a method that works at any site without it.
    """

    settings: type[S]
    compile: Compile[S]
    compile_each: CompileEach[S] | None = None
    needs: type[Any] | None = None
