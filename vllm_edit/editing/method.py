"""An editing method: settings, and a function from edits at a site to a delta."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from vllm_edit.artefacts.compiled import Factors
from vllm_edit.artefacts.manifest import Column, KeyGroup
from vllm_edit.artefacts.reports import CompileReport
from vllm_edit.artefacts.site import Site
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit
from vllm_edit.editing.method_settings import MethodSettings
from vllm_edit.errors import UnsafeEdit
from vllm_edit.json_value import JSONValue
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress


@dataclass(frozen=True)
class MethodResult:
    """A method's result: the delta as saved, and data for the manifest and the report.

    factors: K, C⁻¹K and residuals of a closed-form method; with them, composing needs no model.
    settings: complete, JSON-serialisable, part of the identity.
    report: measurements, not part of the identity; each edit that exceeds a limit has a line there.
    """

    delta: Delta
    factors: Factors | None = None
    groups: tuple[KeyGroup, ...] = ()
    columns: tuple[Column, ...] = ()
    settings: Mapping[str, JSONValue] = field(default_factory=dict)
    report: CompileReport = field(default_factory=CompileReport)


R = TypeVar("R")
S = TypeVar("S", bound=MethodSettings)
Compile = Callable[[Base, Site, Any, Sequence[Edit], S, Progress | None], MethodResult]
"""Compiles all edits of a patch together, with the site's data (`Method.needs`). It must not change the base, even if
it raises."""
CompileEach = Callable[[Base, Site, Any, Sequence[Patch], S, Progress | None], list[MethodResult]]
"""Compiles several patches independently in one batch."""


@dataclass(frozen=True)
class Method(Generic[S]):
    """An editing method.

    settings: the type of its settings. compile: for one patch. compile_each: for many patches, if faster than a loop.
    needs: the types of data that the method's sites may have; None for a method that works at any site.
    """

    settings: type[S]
    compile: Compile[S]
    compile_each: CompileEach[S] | None = None
    needs: tuple[type[Any], ...] | None = None


def refuse_missed(report: CompileReport, on_missed: Literal["error", "report"]) -> None:
    """Refuse edits that exceed a limit, unless they are only to be reported.

    Raises:
        UnsafeEdit: edits exceed a limit; the message names all of them.
    """
    if on_missed == "error" and report.problems:
        raise UnsafeEdit("\n".join(report.problems))


def all_or_refused(makers: Sequence[Callable[[], R]], step: str = "", progress: Progress | None = None) -> list[R]:
    """The results of several patches. All are made before any is refused.

    Args:
        makers: make a result each.
        step: name of the work, for the progress.
        progress: called with (step, finished makers, all makers).

    Raises:
        UnsafeEdit: edits exceed a limit; the message names those of all patches.
    """
    results, problems = list[R](), list[str]()
    for number, make in enumerate(makers, 1):
        try:
            results.append(make())
        except UnsafeEdit as error:
            problems += str(error).splitlines()
        if progress:
            progress(step, number, len(makers))
    if problems:
        raise UnsafeEdit("\n".join(problems))
    return results
