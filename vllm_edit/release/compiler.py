"""Compiles many patches, each as if alone. A patch that cannot be compiled is refused, and the others go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site
from vllm_edit.editing.compile import (
    BATCH,
    check_base,
    check_site_tensors,
    compile_patch,
    compile_separately,
    method_of,
    settings_of,
)
from vllm_edit.editing.site_tensors import SiteTensors
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.evaluation.refused import Refused
from vllm_edit.json_value import JSONValue
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch, Scope
from vllm_edit.progress import Progress, silent
from vllm_edit.text.spelling import written


@dataclass(frozen=True)
class Attempt:
    """The attempt to compile a patch.

    Attributes:
        row: the patch's number among those given.
        result: the compiled patch, or the reason why it is refused.
        seconds: duration of compiling; for a patch of a batch, an equal share of the batch's.
    """

    row: int
    result: CompiledPatch | Refused
    seconds: float


@dataclass(frozen=True)
class Compiler:
    """Compiles patches at a site with one method.

    Attributes:
        base: the model.
        site: where the edits go.
        tensors: the site's second moment, network or gradient statistics.
        method: the method's name.
        settings: settings of the method by name; its defaults for the others.
        progress: called with (step, completed units, total units).
    """

    base: Base
    site: Site
    tensors: SiteTensors
    method: str = "rome"
    settings: Mapping[str, JSONValue] | None = None
    progress: Progress = silent

    def attempts(self, patches: Sequence[Patch], clock: Callable[[], float] = time.perf_counter) -> Iterator[Attempt]:
        """Compile each patch. Patches about different subjects are compiled in one batch where the method can.

        Rounding depends on a batch's shape, so a patch alone has the same weights up to rounding, and another name.

        Args:
            patches: the patches, compiled independently.
            clock: the time in seconds.

        Yields:
            One attempt for each patch, batch by batch: not in the order of `patches`.

        Raises:
            Incompatible: the site or a patch belongs to another base.
            EditError: there is no such method, its settings are invalid, or it cannot use the site. Any other mistake
                refuses only its own patch.
        """
        self._check({patch.scope for patch in patches})
        for rows in _batches(patches):
            batch, started = [patches[row] for row in rows], clock()
            together = self._together(batch) if len(batch) > 1 else None
            if together is not None:
                seconds = (clock() - started) / len(batch)
                yield from (Attempt(row, result, seconds) for row, result in zip(rows, together, strict=True))
                continue
            for row, patch in zip(rows, batch, strict=True):
                started = clock()
                yield Attempt(row, self._alone(patch), clock() - started)

    def _check(self, scopes: Iterable[Scope]) -> None:
        """Check what all patches share, so that a wrong setting is reported once and does not refuse every patch."""
        check_base(self.base, self.site)
        chosen = method_of(self.method)
        for scope in scopes:
            settings_of(chosen, self.settings, scope).check_at(self.site)
        check_site_tensors(self.method, self.tensors)

    def _together(self, patches: Sequence[Patch]) -> list[CompiledPatch | Refused] | None:
        """Compile all in one batch; None if the method has no batches, or if an edit cannot be tried."""
        chosen = method_of(self.method)
        if chosen.compile_each is None:
            return None
        wanted = settings_of(chosen, self.settings)
        # An edit that misses must not fail the batch: it is reported, and refused here.
        reporting = wanted.replace(on_missed="report")
        try:
            compiled = compile_separately(
                patches,
                self.base,
                self.method,
                site=self.site,
                site_tensors=self.tensors,
                settings=reporting,
                progress=self.progress,
            )
        except EditError:  # compiled one by one, each patch has its own error
            return None
        if wanted.on_missed == "report":
            return list(compiled)
        return [_judged(patch, one) for patch, one in zip(patches, compiled, strict=True)]

    def _alone(self, patch: Patch) -> CompiledPatch | Refused:
        try:
            return compile_patch(
                patch,
                self.base,
                self.method,
                site=self.site,
                site_tensors=self.tensors,
                settings=self.settings,
                progress=self.progress,
            )
        except Incompatible:
            raise
        except EditError as error:
            return Refused(patch, str(error))


def _judged(patch: Patch, compiled: CompiledPatch) -> CompiledPatch | Refused:
    """Return `compiled`, or `Refused` with the problems of its report, worded as `UnsafeEdit`."""
    problems = compiled.report.problems
    return Refused(patch, "\n".join(problems)) if problems else compiled


def _batches(patches: Sequence[Patch]) -> list[list[int]]:
    """Row numbers in batches of at most `BATCH` in which no two patches share a subject.

    A patch that declares more than its edits (base, scope) has its own batch: `compile_patch` handles it.
    """
    batches: list[list[int]] = []
    taken: list[set[str]] = []
    alone = []
    for row, patch in enumerate(patches):
        if patch.base is not None or patch.scope != "all":
            alone.append([row])
            continue
        subjects = {written(edit.subject).folded for edit in patch.edits}
        free = (n for n, some in enumerate(taken) if len(batches[n]) < BATCH and not some & subjects)
        place = next(free, len(batches))
        if place == len(batches):
            batches.append([])
            taken.append(set())
        batches[place].append(row)
        taken[place] |= subjects
    return batches + alone
