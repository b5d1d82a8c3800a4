"""Which adapters are in the engine: loaded on first use or ahead of time, each exactly once, never replaced.

An adapter's name is its content, so a loaded one never has to be loaded again. vLLM reads an evicted adapter again
from its directory inside the engine step; so the engine is given a verified copy on this machine that outlives the
store's files and every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Protocol

from vllm_edit.errors import EditError, Incompatible
from vllm_edit.serving.metrics import Metrics
from vllm_edit.store.manifest import Manifest
from vllm_edit.store.site import Site

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_LEAST_FREE = 256 * 2**20


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


def local_folder() -> tempfile.TemporaryDirectory[str]:
    """A private folder for adapters that lives as long as this object, at most as long as the process.

    In memory where there is room: vLLM parses and loads an adapter from there in 0.3 ms.
    """
    roomy = os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free > SHARED_MEMORY_LEAST_FREE
    return tempfile.TemporaryDirectory(prefix="vllm-edit-", dir=SHARED_MEMORY if roomy else None)


class Residency:
    def __init__(self, store: AdapterStore, engine: AdapterEngine, site: Site, folder: Path, metrics: Metrics) -> None:
        self._store, self._engine, self.site = store, engine, site
        self._folder, self._metrics = folder, metrics
        self._resident: set[str] = set()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, Incompatible] = {}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._resident)

    async def ensure(self, name: str) -> None:
        """Return when the adapter is in the engine; concurrent callers share one load.

        Raises:
            Incompatible: the running engine cannot apply it (other base, site or rank); remembered, as neither changes.
            Corrupt, NotFound: the stored adapter is damaged or gone.
        """
        if name in self._resident:
            return
        if name in self._refused:
            raise self._refused[name]
        task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = asyncio.create_task(self._load(name))
            task.add_done_callback(lambda done: self._finish(name, done))
        await asyncio.shield(task)  # a client that goes away must not stop a load that others wait for

    async def try_ensure(self, name: str) -> None:
        """Load ahead of time. A failure is logged and counted by the load; the request that needs it gets it raised."""
        with contextlib.suppress(EditError):
            await self.ensure(name)

    def _finish(self, name: str, task: asyncio.Task[None]) -> None:
        del self._loading[name]
        error = None if task.cancelled() else task.exception()
        self._metrics.loads.labels("failed" if task.cancelled() or error else "loaded").inc()
        if isinstance(error, Incompatible):
            self._refused[name] = error
        if error is not None:
            logger.error("adapter %s was not loaded: %s", name, error)

    async def _load(self, name: str) -> None:
        begun = time.perf_counter()
        manifest = await asyncio.to_thread(self._store.manifest, name)
        applicable(manifest, self.site, self._engine.max_rank)
        path = await asyncio.to_thread(self._store.adapter_folder, name, self._folder)
        number = await asyncio.to_thread(self._store.adapter_id, name)
        await self._engine.add(name, number, str(path))
        self._resident.add(name)
        seconds = time.perf_counter() - begun
        self._metrics.load_seconds.observe(seconds)
        logger.info("adapter %s is in the engine as number %d after %.1f ms", name, number, 1000 * seconds)


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
