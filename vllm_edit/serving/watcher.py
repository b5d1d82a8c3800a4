"""Keeps the catalogue equal to the registry, which notifies the watcher of changes.

Requests read `current` and never wait for the registry, with an exception: for a caller without a tenant, an unknown
name is looked up once in the registry before it is refused, so that a newly compiled patch is found.

Each new state is saved on this node before it is in force, so that a kill still holds after a restart without the
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
from vllm_edit.registry.revision import Revision
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.rollout.decision import Choice
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.model_field import NOTHING, Asking, Catalogue
from vllm_edit.serving.threads import Threads

logger = logging.getLogger(__name__)

FAILURES = (SQLAlchemyError, EditError, OSError)
"""The errors that an unreachable registry raises."""

_BEAT_S = 1.0  # between two heartbeats, and between two tries to reach a registry that is down


class WatchedRegistry(Protocol):
    """The part of the registry that serving reads."""

    def revision(self) -> Revision: ...
    def snapshot(self) -> Snapshot: ...
    def wait_for_change(self, generation: int, timeout_s: float, token: str | None) -> bool: ...


class SavedState(Protocol):
    """This node's copy of the last known state."""

    def keep(self, snapshot: Snapshot, is_newest: Callable[[], bool]) -> bool: ...
    def read(self) -> Snapshot | None: ...


def last_known(saved: SavedState, error: Exception) -> Snapshot:
    """This node's saved state of a registry that cannot be read because of `error`.

    Raises:
        Incompatible: this node has no saved state.
        Corrupt: the saved state is damaged.
        Unavailable: the saved state cannot be read.
    """
    snapshot = saved.read()
    if snapshot is None:
        raise Incompatible(f"{error}; and this node has no saved state of it to serve from") from error
    return snapshot


class Watcher:
    """Follows the registry. on_change: called with each new catalogue, in the event loop. report: sends a heartbeat."""

    def __init__(
        self,
        registry: WatchedRegistry,
        bases: tuple[str, ...],
        metrics: Metrics,
        *,
        saved: SavedState,
        on_change: Callable[[Catalogue], None] = lambda _: None,
        report: Callable[[Revision], Awaitable[None]] | None = None,
    ) -> None:
        self._registry, self._metrics, self._saved = registry, metrics, saved
        self._on_change, self._report = on_change, report
        self._threads = Threads(2)  # to wait for a change, and to read the state for a request
        self._lock = asyncio.Lock()
        self._failing = False
        self._ends: datetime | None = None  # when a publication or an arm next expires
        self.current = Catalogue(bases, NOTHING)

    async def first(self) -> Catalogue:
        """The initial catalogue: the registry's, or, if the registry is down, the last that this node saved.

        Raises:
            Incompatible: neither is available, or the registry belongs to another store.
            Corrupt: the saved state is damaged, and the registry is down.
        """
        try:
            return await self.refresh()
        except Incompatible:
            raise
        except FAILURES as error:
            snapshot = await self._threads.run(last_known, self._saved, error)
            logger.warning("%s; serving from the last state that this node saved (%d)", error, snapshot.generation)
            self._failed(error)
            self._put(Catalogue(self.current.bases, snapshot))
            return self.current

    async def refresh(self) -> Catalogue:
        """Read the registry if its revision changed, report that it is applied, and return the current catalogue.

        Raises:
            EditError: the registry cannot be read, or has lost its keys.
        """
        async with self._lock:
            changed = await self._threads.run(self._read, self.current)
            self._reached()
            if changed is not None:
                self._metrics.refreshes.labels("changed").inc()
                self._put(changed)
                await self._beat()
            return self.current

    async def resolve(self, model: str | None, asking: Asking) -> Choice:
        """`Catalogue.resolve`; for a caller without a tenant, refresh before an unknown name is refused.

        A tenant's names change only by publishing, which waits until every server has applied the change.
        """
        try:
            return self.current.resolve(model, asking)
        except NotFound:
            if asking.caller.tenant is not None or self._failing:
                raise
            try:
                catalogue = await self.refresh()
            except FAILURES:
                catalogue = self.current  # `run` reports the failure; the name is unknown either way
            return catalogue.resolve(model, asking)

    async def run(self) -> None:
        """Follow the registry; never returns. While it cannot be reached, the last catalogue stays in force."""
        while True:
            try:
                known, rest_s = self.current.snapshot, _rest_s(self._ends)
                if not await self._threads.run(self._registry.wait_for_change, known.generation, rest_s, known.token):
                    await self._beat()
                self._look_at_ends()
                await self.refresh()
            except Exception as error:  # catch everything: a watcher that dies leaves the server stale without notice
                self._failed(error)
                await asyncio.sleep(_BEAT_S)

    def _look_at_ends(self) -> None:
        """When a publication or an arm has expired, call `on_change`, because other patches may now be wanted."""
        now = datetime.now(UTC)
        if self._ends is not None and self._ends <= now:
            self._ends = self.current.snapshot.next_end(now)
            self._on_change(self.current)

    def _put(self, catalogue: Catalogue) -> None:
        if catalogue.ambiguous and catalogue.ambiguous != self.current.ambiguous:
            logger.error(
                "tenant %s has the base model's served name, so requests for it are refused; serve the base under "
                "another name (--served-model-name NAME)",
                ", ".join(catalogue.ambiguous),
            )
        self.current, self._ends = catalogue, catalogue.snapshot.next_end(datetime.now(UTC))
        self._metrics.generation.set(catalogue.generation)
        self._metrics.count_patches(catalogue.snapshot)
        self._on_change(catalogue)

    async def _beat(self) -> None:
        if self._report is not None:
            await self._report(self.current.snapshot.revision)

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
        """The registry's state, after saving it on this node; None if it is unchanged."""
        newest, applied = self._registry.revision(), known.snapshot.revision
        self._metrics.lag.set(applied.behind(newest) if known.snapshot is not NOTHING else 0)
        if newest == applied:
            return None
        snapshot = self._registry.snapshot()
        if known.snapshot.keyed and not snapshot.keyed:
            # It may be another database or an old copy; without keys, the server would answer anyone.
            raise Incompatible(
                "the registry has lost its keys; restore them, or restart the server if it is meant to answer anyone"
            )
        try:
            self._saved.keep(snapshot, lambda: self._registry.revision() == snapshot.revision)
        except (OSError, EditError) as error:  # even with a full disk, a kill must take effect
            logger.error("the state of the registry cannot be saved on this node: %s", error)
        self._metrics.lag.set(0)
        return Catalogue(known.bases, snapshot)


def _rest_s(ends: datetime | None) -> float:
    """Seconds until the next heartbeat, or until a publication or an arm expires."""
    return _BEAT_S if ends is None else min(_BEAT_S, max(0.0, (ends - datetime.now(UTC)).total_seconds()))
