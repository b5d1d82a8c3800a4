"""Every single edit compiled once by each method, kept in a store of the benchmark's own, for all rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.public.place import Place
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.editing.compile import compile_patch, compile_separately, method_of, settings_of
from vllm_edit.evaluation.record import Record
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress

BATCH = 32
"""Edits compiled at once."""


@dataclass(frozen=True)
class Spent:
    """What compiling took: seconds by the clock, and of all processors. missed: edits beyond a limit of the method's,
    which the product would refuse."""

    seconds: float = 0.0
    cpu: float = 0.0
    missed: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu + other.cpu, self.missed + other.missed)


class Stopwatch:
    """Seconds by the clock and of all processors since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def spent(self, missed: int = 0) -> Spent:
        clock, cpu = self._started
        return Spent(time.perf_counter() - clock, time.process_time() - cpu, missed)


class Singles:
    """One method's edits at its place. record: which single edit is kept under which name, and what each took."""

    def __init__(self, method: str, settings: Mapping[str, Any], base: Base, place: Place, record: Record) -> None:
        self._method, self._settings, self._base = method, {**settings, "on_missed": "report"}, base
        self._place, self._record = place, record
        self._known: dict[str, tuple[str, Spent]] = {}
        for entry in record.entries:
            self._know(entry)

    def of(self, patches: Sequence[Patch], progress: Progress) -> tuple[list[CompiledPatch], Spent]:
        """Each patch as it is compiled alone, and what all of them took, now or in an earlier run."""
        site, kept = self._place.site, self._place.kept
        missing = [patch for patch in patches if patch.name not in self._known]
        for start in range(0, len(missing), BATCH):
            batch, watch = missing[start : start + BATCH], Stopwatch()
            made = compile_separately(
                batch,
                self._base,
                self._method,
                site=site,
                site_tensors=self._place.site_tensors,
                settings=self._settings,
                progress=progress,
            )
            spent = asdict(watch.spent())
            entry: dict[str, Any] = {
                "patches": [patch.name for patch in batch],
                "names": [kept.save(patch) for patch in made],
                "missed": [bool(patch.report.missed) for patch in made],
                "spent": spent,
            }
            self._record.add(entry)
            self._know(entry)
        known = [self._known[patch.name] for patch in patches]
        return [kept.load(name) for name, _ in known], total(spent for _, spent in known)

    def together(self, patch: Patch, settings: Mapping[str, Any], progress: Progress) -> tuple[CompiledPatch, Spent]:
        """All edits of the patch compiled at once with these settings, and what that took. It is not kept."""
        watch = Stopwatch()
        compiled = compile_patch(
            patch,
            self._base,
            self._method,
            site=self._place.site,
            site_tensors=self._place.site_tensors,
            settings={**settings, "on_missed": "report"},
            progress=progress,
        )
        return compiled, watch.spent(len(compiled.report.missed))

    def _know(self, entry: Mapping[str, Any]) -> None:
        seconds, cpu = (entry["spent"][key] / len(entry["patches"]) for key in ("seconds", "cpu"))
        for patch, name, missed in zip(entry["patches"], entry["names"], entry["missed"], strict=True):
            self._known[patch] = name, Spent(seconds, cpu, int(missed))


def identity_of(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The method with all of its settings, JSON-able: what a record of its edits is of."""
    chosen = settings_of(method_of(method), settings)
    return {"method": method, "settings": {key: _plain(value) for key, value in dict(chosen).items()}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def total(spent: Iterable[Spent]) -> Spent:
    return sum(spent, Spent())
