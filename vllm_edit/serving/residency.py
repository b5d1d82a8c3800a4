"""Which adapters are in the engine: loaded on first use or ahead of time, each exactly once, never replaced.

An adapter's name is its content, so a loaded one never has to be loaded again. vLLM reads an adapter that its own cache
dropped again from its directory inside the engine step; so the engine is given a verified copy on this machine that
outlives the store's files and every request on it.

A request holds a *lease* on its adapter until its answer has ended. Beyond `capacity` adapters, those that were unused
longest leave: out of vLLM's names, out of the engine, then off the disk; and so does every adapter of a patch that was
removed from the registry. One on lease, or whose last lease ended less than `GRACE_S` ago, stays until then, whatever
the capacity.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Container, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.artefacts.site import Site
from vllm_edit.errors import EditError, Incompatible, NotFound
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.shared import Shared

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_LEAST_FREE = 256 * 2**20
GRACE_S = 2.0
"""vLLM hears of a client that went away, and aborts its request, a moment after the answer has ended for us."""


class AdapterStore(Protocol):
    """The part of the store that residency needs."""

    def manifest(self, name: str) -> Manifest: ...
    def adapter_folder(self, name: str, cache: Path) -> Path: ...
    def adapter_id(self, name: str) -> int: ...


class AdapterEngine(Protocol):
    """The part of the engine that residency needs."""

    @property
    def max_rank(self) -> int: ...
    async def add(self, name: str, number: int, path: str) -> None: ...
    async def remove(self, name: str, number: int) -> None: ...


@dataclass(frozen=True)
class Resident:
    """An adapter in the engine, of a compiled patch: that of all of it, or of what a request mentions of it."""

    number: int
    path: Path
    patch: str


class _Everything:
    def __contains__(self, name: object) -> bool:
        return True


def local_folder() -> tempfile.TemporaryDirectory[str]:
    """A private folder for adapters that lives as long as this object, at most as long as the process.

    In memory where there is room: vLLM parses and loads an adapter from there in 0.3 ms.
    """
    roomy = os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free > SHARED_MEMORY_LEAST_FREE
    return tempfile.TemporaryDirectory(prefix="vllm-edit-", dir=SHARED_MEMORY if roomy else None)


class Residency:
    """capacity: adapters in the engine at most. slots: different ones in one batch."""

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
        self._resident: OrderedDict[str, Resident] = OrderedDict()  # the one unused longest first
        self._leases: Counter[str] = Counter()
        self._free_since: dict[str, float] = {}  # when the last lease of a resident one ended
        self._loading = Shared[None]()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, str] = {}  # why; an error raised again and again would keep each request's frames
        self._used: Counter[str] = Counter()  # leases and loads by compiled patch
        self._existing: Container[str] = _Everything()
        self._look: asyncio.TimerHandle | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._resident)

    @property
    def leases(self) -> int:
        """Requests under way on an adapter."""
        return self._leases.total()

    def follow(self, existing: Container[str]) -> None:
        """The compiled patches that there are now, by name: adapters of others leave, and none of theirs is loaded."""
        self._existing = existing
        self._shrink()

    @property
    def drained(self) -> bool:
        """No adapter of a patch that was removed is in use, in the engine, or on its way out of it or off the disk."""
        here = {resident.patch for resident in self._resident.values()}
        return not self._leaving and all(patch in self._existing for patch in here.union(self._used))

    @asynccontextmanager
    async def lease(
        self, name: str, source: AdapterStore | None = None, patch: str | None = None
    ) -> AsyncIterator[None]:
        """The adapter is in the engine, and stays there and on disk until the end of the context.

        source: where it comes from; by default the store. patch: the compiled patch that it is of; by default itself.
        Raises as `ensure` does.
        """
        of = patch or name
        self._leases[name] += 1  # first: nothing may take it away between loading and use
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
            Incompatible: the running engine cannot apply it (other base, site or rank); remembered, as neither changes.
            Corrupt, NotFound: the stored adapter is damaged or gone, or its patch was removed.
        """
        of = patch or name
        while of not in self._existing or name not in self._resident:
            if of not in self._existing:  # from the beginning, or while it was loaded
                raise NotFound(f"{of} was removed from the store")
            if name in self._refused:
                raise Incompatible(self._refused[name])
            if name in self._leaving:
                await asyncio.shield(self._leaving[name])  # in and out in one order, or the engine loses it
            else:
                await self._loading.run(name, lambda: self._loaded(name, source or self._store, of))

    async def try_ensure(self, name: str) -> None:
        """Load ahead of time. A failure is logged and counted by the load; the request that needs it gets it raised."""
        with contextlib.suppress(EditError):
            await self.ensure(name)

    @contextlib.contextmanager
    def using(self, patch: str) -> Iterator[None]:
        """A request needs the patch's files, as long as the context lasts: it is not drained."""
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
            number = await asyncio.to_thread(source.adapter_id, name)
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
        """Begin to take out what was removed or exceeds the capacity, and nobody uses; look again later for what is
        still too fresh."""
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
        """Take it out of the engine, then off the disk: vLLM may read the directory as long as it knows the adapter."""
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
            del self._leaving[name]  # here, not in a callback: who finds a task there waits, and never spins


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
            "--max-lora-rank or compile with fewer columns"
        )
    if reasons:
        raise Incompatible(f"{manifest.name} cannot be applied here: {'; '.join(reasons)}")
