"""The adapters in the engine: each is loaded once, on first use or ahead of time, and never replaced.

An adapter's name identifies its content, so a loaded adapter never needs reloading. Each load has a number of its own,
by which the engine knows the adapter. If vLLM's cache drops an adapter,
vLLM reads its directory again inside the engine step; so the engine gets a verified local copy, which outlives the
store's files and every request on it.

A request holds a *lease* on its adapter until its answer has ended. Beyond `capacity` adapters, the least recently used
are removed from vLLM's names, then from the engine, then from the disk; so is every adapter of a patch that was removed
from the registry. An adapter with a lease, or whose last lease ended less than `GRACE_S` ago, is not removed yet,
whatever the capacity.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Container, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Protocol

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.site import Site
from vllm_edit.errors import EditError, Incompatible, NotFound
from vllm_edit.files import memory_folder
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.single_flight import SingleFlight

logger = logging.getLogger(__name__)

LEAST_FREE_MEMORY = 256 * 2**20  # bytes
GRACE_S = 2.0
"""After a client disconnects, vLLM aborts its request a moment after the answer has ended for us."""


class AdapterStore(Protocol):
    """The part of the store that residency needs."""

    def manifest(self, name: str) -> Manifest: ...
    def adapter_folder(self, name: str, cache: Path) -> Path: ...


class AdapterEngine(Protocol):
    """The part of the engine that residency needs."""

    @property
    def max_rank(self) -> int: ...
    async def add(self, name: str, number: int, path: str) -> None: ...
    async def remove(self, name: str, number: int) -> None: ...


@dataclass(frozen=True)
class Resident:
    """An adapter in the engine: that of a whole compiled patch, or of the part that a request mentions.

    patch: an existing compiled patch that uses it; several versions of a patch may share a part.
    """

    number: int
    path: Path
    patch: str


class _Everything:
    def __contains__(self, name: object) -> bool:
        return True


def local_folder() -> tempfile.TemporaryDirectory[str]:
    """A private folder for adapters that exists as long as this object, at most as long as the process.

    It is in shared memory if there is room: vLLM parses and loads an adapter from there in 0.3 ms.
    """
    return tempfile.TemporaryDirectory(prefix="vllm-edit-", dir=memory_folder(LEAST_FREE_MEMORY))


class Residency:
    """Loads and removes adapters. capacity: maximum number in the engine. slots: maximum number in a batch."""

    def __init__(
        self,
        store: AdapterStore,
        engine: AdapterEngine,
        site: Site,
        folder: Path,
        metrics: Metrics,
        capacity: int = 256,
        slots: int = 16,
        grace_s: float = GRACE_S,
    ) -> None:
        self._store, self._engine, self.site = store, engine, site
        self._folder, self._metrics = folder, metrics
        self.capacity, self.slots, self._grace_s = capacity, slots, grace_s
        self._resident: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        # vLLM only touches a number that it knows, whatever the adapter. The registry's ids may come twice: a database
        # that was restored from an older copy gives them again. vLLM stores numbers in 32 bits.
        self._numbers = count(1)
        self._leases: Counter[str] = Counter()
        self._free_since: dict[str, float] = {}  # when a resident adapter's last lease ended
        self._loading = SingleFlight[None]()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[
            str, str
        ] = {}  # reasons; an error that is raised repeatedly would keep each request's frames alive
        self._used: Counter[str] = Counter()  # leases and loads by compiled patch
        self._existing: Container[str] = _Everything()
        self._look: asyncio.TimerHandle | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._resident)

    @property
    def leases(self) -> int:
        """Number of running requests that use an adapter."""
        return self._leases.total()

    def follow(self, existing: Container[str]) -> None:
        """Set the names of the existing compiled patches. Adapters of other patches are removed."""
        self._existing = existing
        self._shrink()

    @property
    def drained(self) -> bool:
        """True if no adapter of a removed patch is in use, in the engine, or still being removed."""
        here = {resident.patch for resident in self._resident.values()}
        return not self._leaving and all(patch in self._existing for patch in here.union(self._used))

    @asynccontextmanager
    async def lease(
        self, name: str, source: AdapterStore | None = None, patch: str | None = None
    ) -> AsyncIterator[None]:
        """Load the adapter, and keep it in the engine and on disk until the context ends.

        Args:
            name: the adapter's name.
            source: where to load it from; by default the store.
            patch: the compiled patch that it belongs to; by default `name`.

        Raises:
            Incompatible, Corrupt, NotFound: as `ensure`.
        """
        of = patch or name
        self._leases[name] += 1  # first, so that nothing removes it between loading and use
        try:
            with self.using(of):
                await self.ensure(name, source, of)
                yield
        finally:
            self._leases[name] -= 1
            if not self._leases[name]:
                del self._leases[name]
                if name in self._resident:
                    self._resident.move_to_end(name)
                    self._free_since[name] = time.monotonic()
                    self._shrink()

    async def ensure(self, name: str, source: AdapterStore | None = None, patch: str | None = None) -> None:
        """Return when the adapter is in the engine; concurrent callers share one load.

        Raises:
            Incompatible: the engine cannot apply it (other base, site or rank); cached, because neither changes.
            Corrupt: the stored adapter is damaged.
            NotFound: the stored adapter is missing, or its patch was removed.
        """
        of = patch or name
        while of not in self._existing or name not in self._resident:
            if of not in self._existing:  # before the call, or while it was loading
                raise NotFound(f"{of} was removed from the store")
            if name in self._refused:
                raise Incompatible(self._refused[name])
            if name in self._leaving:
                await asyncio.shield(self._leaving[name])  # load only after the removal, or the engine loses it
            else:
                await self._loading.run(name, lambda: self._loaded(name, source or self._store, of))
        resident = self._resident[name]
        if resident.patch not in self._existing:  # two versions of a patch share the adapter, and the first was removed
            self._resident[name] = replace(resident, patch=of)

    @contextlib.contextmanager
    def using(self, patch: str) -> Iterator[None]:
        """Mark the patch as in use, and so not drained, until the context ends."""
        self._used[patch] += 1
        try:
            yield
        finally:
            self._used[patch] -= 1
            if not self._used[patch]:
                del self._used[patch]

    async def _loaded(self, name: str, source: AdapterStore, patch: str) -> None:
        with self.using(patch):
            await self._load(name, source, patch)
        self._shrink()

    async def _load(self, name: str, source: AdapterStore, patch: str) -> None:
        begun, outcome = time.perf_counter(), "failed"
        try:
            manifest = await asyncio.to_thread(source.manifest, name)
            applicable(manifest, self.site, self._engine.max_rank)
            path = await asyncio.to_thread(source.adapter_folder, name, self._folder)
            number = next(self._numbers)
            await self._engine.add(name, number, str(path))
            outcome = "loaded"
        except EditError as error:
            if isinstance(error, Incompatible):
                self._refused[name] = str(error)
            logger.error("adapter %s was not loaded: %s", name, error)
            raise
        finally:
            self._metrics.loads.labels(outcome).inc()
        self._resident[name], self._free_since[name] = Resident(number, path, patch), time.monotonic()
        self._metrics.resident.set(len(self._resident))
        seconds = time.perf_counter() - begun
        self._metrics.load_seconds.observe(seconds)
        logger.info("adapter %s is in the engine as number %d after %.1f ms", name, number, 1000 * seconds)

    def _shrink(self) -> None:
        """Start to remove unused adapters that exceed the capacity or whose patch was removed. Check again later for
        adapters within their grace period."""
        removed = [name for name, resident in self._resident.items() if resident.patch not in self._existing]
        excess = max(0, len(self._resident) - self.capacity)
        if not removed and not excess:
            return
        now = time.monotonic()
        candidates = list(self._resident) if excess else removed
        free = [name for name in candidates if not self._leases[name]]
        rested = [name for name in free if now - self._free_since[name] >= self._grace_s]
        gone = [name for name in rested if name in removed]
        others = [name for name in rested if name not in removed]
        for name in [*gone, *others[: max(0, excess - len(gone))]]:
            resident = self._resident.pop(name)
            del self._free_since[name]
            self._leaving[name] = asyncio.create_task(self._remove(name, resident))
        self._metrics.resident.set(len(self._resident))
        if len(free) > len(rested) and self._look is None:
            self._look = asyncio.get_running_loop().call_later(self._grace_s, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._shrink()

    async def _remove(self, name: str, resident: Resident) -> None:
        """Remove it from the engine, then from the disk: vLLM may read the directory while it knows the adapter."""
        try:
            await self._engine.remove(name, resident.number)
        except EditError as error:
            self._metrics.unloads.labels("failed").inc()
            logger.error("adapter %s was not unloaded, its files stay: %s", name, error)
        else:
            await asyncio.to_thread(shutil.rmtree, resident.path, ignore_errors=True)
            self._metrics.unloads.labels("unloaded").inc()
            logger.info("adapter %s has left the engine", name)
        finally:
            del self._leaving[name]  # here, not in a done-callback, so that waiters never busy-loop


def applicable(manifest: Manifest, site: Site, max_rank: int) -> None:
    """Raise `Incompatible`, with every reason, unless an engine wrapping `site` with `max_rank` can apply it."""
    reasons = []
    if manifest.base != site.base.digest:
        reasons.append(f"it was compiled for base {manifest.base[:12]}, this engine runs {site.base.digest[:12]}")
    if manifest.site != site.digest:
        reasons.append(f"it was compiled at site {manifest.site[:12]}, this engine wraps {site.digest[:12]}")
    if foreign := sorted(set(manifest.modules) - set(site.modules)):
        reasons.append(f"it changes {', '.join(foreign)}, this engine wraps only {', '.join(site.modules)}")
    if manifest.rank > max_rank:
        reasons.append(
            f"its rank {manifest.rank} exceeds this engine's max_lora_rank {max_rank}; restart with a larger "
            "--max-lora-rank, or split the patch"
        )
    if reasons:
        raise Incompatible(f"{manifest.name} cannot be applied here: {'; '.join(reasons)}")
