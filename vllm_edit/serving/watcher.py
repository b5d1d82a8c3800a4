"""Keeps the catalogue equal to the registry: a cheap look at its generation many times a second, in a thread.

Requests read `current` and never wait for the registry; only a name that nobody knows is looked up once more before
it is refused, so that what was compiled a moment ago is found.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from vllm_edit.errors import EditError, NotFound
from vllm_edit.serving.alias import Catalogue, Choice
from vllm_edit.serving.metrics import Metrics
from vllm_edit.store.entries import PatchEntry, Tenant

logger = logging.getLogger(__name__)


class WatchedRegistry(Protocol):
    """The part of the registry that serving reads."""

    def generation(self) -> int: ...
    def patches(self) -> list[PatchEntry]: ...
    def tenants(self) -> list[Tenant]: ...


class Watcher:
    """`on_change` is called with each new catalogue, in the event loop."""

    def __init__(
        self,
        registry: WatchedRegistry,
        bases: tuple[str, ...],
        metrics: Metrics,
        on_change: Callable[[Catalogue], None] = lambda _: None,
    ) -> None:
        self._registry, self._metrics, self._on_change = registry, metrics, on_change
        self._lock = asyncio.Lock()
        self.current = Catalogue(bases)

    async def refresh(self) -> Catalogue:
        """Read the registry if its generation moved, and return the catalogue that holds now."""
        async with self._lock:
            changed = await asyncio.to_thread(self._read, self.current)
            if changed is not None:
                self.current = changed
                self._metrics.refreshes.labels("changed").inc()
                self._on_change(changed)
            return self.current

    async def resolve(self, model: str | None) -> Choice:
        """`Catalogue.resolve`, asking the registry itself before a name is called unknown."""
        try:
            return self.current.resolve(model)
        except NotFound:
            return (await self.refresh()).resolve(model)

    async def run(self, every_seconds: float) -> None:
        """Refresh for ever. A registry that cannot be reached leaves the last catalogue in force."""
        failing = False
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await self.refresh()
                failing = False
            except (SQLAlchemyError, EditError, OSError) as error:
                self._metrics.refreshes.labels("failed").inc()
                if not failing:
                    logger.warning("the registry cannot be read, the last known state stays in force: %s", error)
                failing = True
                await asyncio.sleep(20 * every_seconds)

    def _read(self, known: Catalogue) -> Catalogue | None:
        """The registry's state, or None if it is `known`. The generation is read first: what changes while the rest
        is read moves it again and is read at the next look."""
        generation = self._registry.generation()
        if generation == known.generation:
            return None
        tenants = {tenant.name: tenant.active for tenant in self._registry.tenants()}
        names = tuple(entry.name for entry in self._registry.patches())
        return Catalogue(known.bases, tenants, names, generation)
