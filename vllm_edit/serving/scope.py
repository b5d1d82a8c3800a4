"""Patches with scope subject at serving time: maps a request's texts to the adapter of the subjects they mention.

A thread builds an index (automaton and unit numbers) once per patch, and it is cached by the patch's name, which is a
digest. A request that mentions one subject gets its micro-adapter as compiled. A request that mentions several gets
their composition, which is built on first use, checked by algebra, named by its content, and cached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cachetools import LRUCache

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.site import Site
from vllm_edit.errors import Incompatible
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.residency import AdapterStore, applicable
from vllm_edit.serving.single_flight import SingleFlight

if TYPE_CHECKING:  # these need torch, which is imported in the thread that first composes
    from vllm_edit.artefacts.compiled import CompiledPatch
    from vllm_edit.composition.scoped import ScopeIndex

_LONG = 2**16  # characters of text that are searched in a thread instead of the event loop
Units = tuple[int, ...]


class UnitStore(Protocol):
    """The part of the store that scope needs."""

    def manifest(self, name: str) -> Manifest: ...
    def unit(self, name: str, member: str) -> CompiledPatch: ...


@dataclass(frozen=True)
class Derived:
    """An adapter that is not in the store under its own name; an `AdapterStore` of this one adapter."""

    own_manifest: Manifest
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        return self.own_manifest.name

    def manifest(self, name: str) -> Manifest:
        return self.own_manifest

    def adapter_folder(self, name: str, cache: Path) -> Path:
        from vllm_edit.store.local_copy import local_copy

        return local_copy(name, self.files, cache)


@dataclass(frozen=True)
class Narrowed:
    """The part of a patch that applies to a request.

    adapter: its name in the engine; None if nothing is in scope. source: where residency loads it from; None for the
    store. subjects, groups, edits: those in scope, groups and edits by their numbers in the patch; None if the patch's
    scope is all.
    """

    adapter: str | None
    source: AdapterStore | None = None
    subjects: tuple[str, ...] | None = None
    groups: tuple[int, ...] | None = None
    edits: tuple[int, ...] | None = None


class Scopes:
    """Caches the indexes of the last `most_indexes` patches and the last `most_derived` adapters."""

    def __init__(
        self,
        store: UnitStore,
        site: Site,
        max_rank: int,
        metrics: Metrics,
        most_indexes: int = 256,
        most_derived: int = 1024,
    ) -> None:
        self._store, self._site, self._max_rank, self._metrics = store, site, max_rank, metrics
        self._indexes = LRUCache[str, "ScopeIndex | None"](most_indexes)
        # A str is the reason for a refusal: an error that is raised repeatedly would keep each request's frames alive.
        self._derived = LRUCache[tuple[str, Units], "Derived | str"](most_derived)
        self._building = SingleFlight["ScopeIndex | None"]()
        self._composing = SingleFlight["Derived | str"]()

    def indexed(self, name: str) -> bool:
        """True if the patch has scope subject and its index is in memory; this counts as a use of the index."""
        return self._indexes.get(name) is not None

    async def index(self, name: str) -> ScopeIndex | None:
        """The patch's index; None if its scope is all.

        Raises:
            Incompatible: this engine cannot apply the patch, which has scope subject.
        """
        if name not in self._indexes:
            self._indexes[name] = await self._building.run(name, lambda: asyncio.to_thread(self._build, name))
        return self._indexes[name]

    async def narrow(self, name: str, index: ScopeIndex, texts: Sequence[str]) -> Narrowed:
        """The part of a patch that applies to a request with these texts.

        Raises:
            EditError: the texts mention more subjects than one adapter can hold.
            Incompatible: the algebraic check refuses the composition; the result is cached.
            Corrupt: a unit's file does not match its name.
        """
        units = await self.mentioned(index, texts)
        if not units:
            return Narrowed(None, None, (), (), ())
        index.check(units, min(self._site.max_rank, self._max_rank))
        key = (name, units)
        if key not in self._derived:
            self._derived[key] = await self._composing.run(key, lambda: asyncio.to_thread(self._compose, index, units))
        found = self._derived[key]
        if isinstance(found, str):
            raise Incompatible(found)
        return self.narrowed(index, units, found)

    async def mentioned(self, index: ScopeIndex, texts: Sequence[str]) -> Units:
        """Numbers of the units that the texts mention."""
        if sum(map(len, texts)) > _LONG:
            return await asyncio.to_thread(index.mentioned, texts)
        return index.mentioned(texts)

    @staticmethod
    def narrowed(index: ScopeIndex, units: Units, derived: Derived | None = None) -> Narrowed:
        """The record of these units."""
        chosen = [index.units[number] for number in units]
        return Narrowed(
            derived.name if derived else None,
            derived,
            tuple(unit.subject for unit in chosen),
            tuple(group for unit in chosen for group in unit.groups),
            tuple(edit for unit in chosen for edit in unit.edits),
        )

    def _build(self, name: str) -> ScopeIndex | None:
        from vllm_edit.composition.scoped import ScopeIndex

        manifest = self._store.manifest(name)
        if manifest.scope == "all":
            return None
        applicable(manifest, self._site, self._max_rank)
        import peft  # noqa: F401  `_compose` uses it. An index is built ahead of requests, so that none waits for this.

        return ScopeIndex.of(manifest)

    def _compose(self, index: ScopeIndex, units: Units) -> Derived | str:
        from vllm_edit.artefacts.folder import encode_adapter

        begun = time.perf_counter()
        try:
            compiled = index.compiled(units, lambda member: self._store.unit(index.name, member), self._site)
        except Incompatible as error:
            self._metrics.compositions.labels("refused").inc()
            return str(error)
        derived = Derived(compiled.manifest, encode_adapter(compiled))
        self._metrics.compositions.labels("single" if len(units) == 1 else "composed").inc()
        self._metrics.compose_seconds.observe(time.perf_counter() - begun)
        return derived
