"""Keeps the catalogue equal to the registry, in a thread that the registry wakes when something changes.

Requests read `current` and never wait for the registry; only on a server without keys a name that nobody knows is
looked up once more before it is refused, so that what was compiled a moment ago is found.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from vllm_edit.errors import EditError, NotFound
from vllm_edit.rollout.decision import Choice
from vllm_edit.serving.alias import NOTHING, Asking, Catalogue
from vllm_edit.serving.metrics import Metrics
from vllm_edit.store.snapshot import Snapshot

logger = logging.getLogger(__name__)

FAILURES = (SQLAlchemyError, EditError, OSError)
"""What a registry that cannot be reached raises."""


class WatchedRegistry(Protocol):
    """The part of the registry that serving reads."""

    def generation(self) -> int: ...
    def snapshot(self) -> Snapshot: ...


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
        self.current = Catalogue(bases, NOTHING)

    async def refresh(self) -> Catalogue:
        """Read the registry if its generation moved, and return the catalogue that holds now."""
        async with self._lock:
            changed = await asyncio.to_thread(self._read, self.current)
            if changed is not None:
                self.current = changed
                self._metrics.refreshes.labels("changed").inc()
                self._on_change(changed)
            return self.current

    async def resolve(self, model: str | None, asking: Asking) -> Choice:
        """`Catalogue.resolve`, asking the registry itself before a name is called unknown to someone who may know all.

        A tenant's names change by publishing only, which is not done before every server follows.
        """
        try:
            return self.current.resolve(model, asking)
        except NotFound:
            if asking.caller.tenant is not None:
                raise
            try:
                catalogue = await self.refresh()
            except FAILURES:
                catalogue = self.current  # it is told by whoever watches; the client's name is unknown either way
            return catalogue.resolve(model, asking)

    async def run(self, every_seconds: float) -> None:
        """Refresh for ever. A registry that cannot be reached leaves the last catalogue in force."""
        failing = False
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await self.refresh()
                failing = False
            except FAILURES as error:
                self._metrics.refreshes.labels("failed").inc()
                if not failing:
                    logger.warning("the registry cannot be read, the last known state stays in force: %s", error)
                failing = True
                await asyncio.sleep(20 * every_seconds)

    def _read(self, known: Catalogue) -> Catalogue | None:
        """The registry's state, or None if it is `known`."""
        if self._registry.generation() == known.generation:
            return None
        return Catalogue(known.bases, self._registry.snapshot())
