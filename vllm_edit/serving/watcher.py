"""Keeps the catalogue equal to the registry, which wakes it when something changes.

Requests read `current` and never wait for the registry; only on a server without keys a name that nobody knows is
looked up once more before it is refused, so that what was compiled a moment ago is found.

Each new state is kept on this node before it is in force: what was killed is killed also after a restart without the
registry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from vllm_edit.errors import EditError, Incompatible, NotFound
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.rollout.decision import Choice
from vllm_edit.serving.alias import NOTHING, Asking, Catalogue
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.threads import Threads

logger = logging.getLogger(__name__)

FAILURES = (SQLAlchemyError, EditError, OSError)
"""What a registry that cannot be reached raises."""

_BEAT_S = 1.0  # between two heartbeats, and between two tries to reach a registry that is down


class WatchedRegistry(Protocol):
    """The part of the registry that serving reads."""

    def generation(self) -> int: ...
    def snapshot(self) -> Snapshot: ...
    def wait_for_change(self, generation: int, timeout_s: float) -> bool: ...


class Kept(Protocol):
    """Where the last known state is kept on this node."""

    def keep(self, snapshot: Snapshot) -> bool: ...
    def read(self) -> Snapshot | None: ...


def last_known(kept: Kept, error: Exception) -> Snapshot:
    """What this node knows of a registry that cannot be read because of `error`.

    Raises:
        Incompatible: nothing.
        Corrupt: what was kept is damaged.
        Unavailable: what was kept cannot be read.
    """
    snapshot = kept.read()
    if snapshot is None:
        raise Incompatible(f"{error}; and this node has kept no state of it to serve by") from error
    return snapshot


class Watcher:
    """on_change: called with each new catalogue, in the event loop. tell: says which generation is in force."""

    def __init__(
        self,
        registry: WatchedRegistry,
        bases: tuple[str, ...],
        metrics: Metrics,
        *,
        kept: Kept,
        on_change: Callable[[Catalogue], None] = lambda _: None,
        tell: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._registry, self._metrics, self._kept = registry, metrics, kept
        self._on_change, self._tell = on_change, tell
        self._threads = Threads(2)  # to wait for a change, and to read the state when a request asks for it
        self._lock = asyncio.Lock()
        self._failing = False
        self._ends: datetime | None = None  # when something that a tenant is served next ends by itself
        self.current = Catalogue(bases, NOTHING)

    async def first(self) -> Catalogue:
        """The state to begin with: the registry's, or, while that is down, the last that this node knew.

        Raises:
            Incompatible: neither can be had, or the registry is another store's.
            Corrupt: the kept state is damaged, and the registry is down.
        """
        try:
            return await self.refresh()
        except Incompatible:
            raise
        except FAILURES as error:
            snapshot = await self._threads.run(last_known, self._kept, error)
            logger.warning("%s; serving by the last state that this node kept (%d)", error, snapshot.generation)
            self._failed(error)
            self._put(Catalogue(self.current.bases, snapshot))
            return self.current

    async def refresh(self) -> Catalogue:
        """Read the registry if its generation moved, say that it is followed, and return the catalogue that holds now.

        Raises:
            EditError: the registry cannot be read, or has lost the keys that it had.
        """
        async with self._lock:
            changed = await self._threads.run(self._read, self.current)
            self._reached()
            if changed is not None:
                self._metrics.refreshes.labels("changed").inc()
                self._put(changed)
                await self._say()
            return self.current

    async def resolve(self, model: str | None, asking: Asking) -> Choice:
        """`Catalogue.resolve`, asking the registry itself before a name is called unknown to someone who may know all.

        A tenant's names change by publishing only, which is not done before every server follows.
        """
        try:
            return self.current.resolve(model, asking)
        except NotFound:
            if asking.caller.tenant is not None or self._failing:
                raise
            try:
                catalogue = await self.refresh()
            except FAILURES:
                catalogue = self.current  # whoever watches is told; the client's name is unknown either way
            return catalogue.resolve(model, asking)

    async def run(self) -> None:
        """Follow for ever. A registry that cannot be reached leaves the last catalogue in force."""
        while True:
            try:
                known, rest_s = self.current.generation, _rest_s(self._ends)
                if not await self._threads.run(self._registry.wait_for_change, known, rest_s):
                    await self._say()
                self._look_at_ends()
                await self.refresh()
            except Exception as error:  # a state that nobody thought of, too: a server that ceased to follow would say
                self._failed(error)  # nothing, and after some seconds no kill waits for it
                await asyncio.sleep(_BEAT_S)

    def _look_at_ends(self) -> None:
        """What follows on something that has ended by itself is wanted from then on, as after a change."""
        now = datetime.now(UTC)
        if self._ends is not None and self._ends <= now:
            self._ends = self.current.snapshot.next_end(now)
            self._on_change(self.current)

    def _put(self, catalogue: Catalogue) -> None:
        self.current, self._ends = catalogue, catalogue.snapshot.next_end(datetime.now(UTC))
        self._metrics.generation.set(catalogue.generation)
        self._metrics.count_patches(catalogue.snapshot)
        self._on_change(catalogue)

    async def _say(self) -> None:
        if self._tell is not None:
            await self._tell(self.current.generation)

    def _reached(self) -> None:
        if self._failing:
            logger.info("the registry can be read again")
        self._failing = False
        self._metrics.registry_up.set(1)

    def _failed(self, error: Exception) -> None:
        self._metrics.refreshes.labels("failed").inc()
        self._metrics.registry_up.set(0)
        if not self._failing:
            unforeseen = None if isinstance(error, FAILURES) else error
            logger.warning(
                "the registry cannot be read, the last known state stays in force: %s", error, exc_info=unforeseen
            )
        self._failing = True

    def _read(self, known: Catalogue) -> Catalogue | None:
        """The registry's state, kept on this node, or None if it is `known`."""
        generation = self._registry.generation()
        self._metrics.lag.set(generation - known.generation if known.generation >= 0 else 0)
        if generation == known.generation:
            return None
        snapshot = self._registry.snapshot()
        if known.snapshot.keyed and not snapshot.keyed:
            # Another database in its place, or an old copy: whoever asks would be answered, wherever this listens.
            raise Incompatible(
                "the registry has lost its keys; restore them, or restart the server if it is meant to answer anyone"
            )
        try:
            self._kept.keep(snapshot)
        except (OSError, EditError) as error:  # a full disk here must not keep this server on what was killed
            logger.error("the state of the registry is not kept on this node: %s", error)
        self._metrics.lag.set(0)
        return Catalogue(known.bases, snapshot)


def _rest_s(ends: datetime | None) -> float:
    """Until the next heartbeat, or until something that a tenant is served ends by itself."""
    return _BEAT_S if ends is None else min(_BEAT_S, max(0.0, (ends - datetime.now(UTC)).total_seconds()))
