"""Guards the rollouts while this server has the lease: tests limits, follows schedules and asks canary probes.

Nothing here is on a request's path. Every server tries to take the lease; the registry gives it to one. If that server
dies, the lease expires and another server takes it. If the registry is down, no server acts; a person's kill then waits
for the registry too, but not for any server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from vllm_edit.registry.leases import LeaseLost
from vllm_edit.registry.rollout_guard import RolloutGuard, Watch
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.serving.canary import Probed
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.threads import Threads
from vllm_edit.serving.watcher import FAILURES, Watcher

logger = logging.getLogger(__name__)

EVERY_S = 2.0
"""Rest between two looks. A look renews the lease when it begins, and as often while it lasts."""

REST = 20.0
"""Pause after a test of limits, as a multiple of the test's duration: tests then take a few per cent of a core."""
_MOST_S = 30.0  # maximum of this pause


class Probing(Protocol):
    """Asks a locality probe of a rollout's treatment."""

    @property
    def idle(self) -> bool: ...
    async def ask(self, rollout: Rollout) -> Probed | None: ...


class Guard:
    """The guard of one server. server: its name for people. `run` is its background task."""

    def __init__(
        self,
        registry: RolloutGuard,
        watcher: Watcher,
        canary: Probing,
        metrics: Metrics,
        *,
        server: str,
        every_s: float = EVERY_S,
        rest: float = REST,
    ) -> None:
        self._registry, self._watcher, self._canary, self._metrics = registry, watcher, canary, metrics
        self._every_s, self._rest = every_s, rest
        self._watch = Watch(secrets.token_hex(16), server)
        self._threads, self._renewing = Threads(1), Threads(1)
        self._holds = False
        self._seen: dict[str, tuple[int, ...]] = {}  # rollout → the evidence that its limits were last tested on
        self._probing: asyncio.Task[None] | None = None
        self._failing = False
        self._rested_at: dict[str, float] = {}  # rollout → the earliest time of its next test
        self._probed = ""  # the rollout whose probe was asked last

    async def run(self) -> None:
        """Look again and again; never returns."""
        try:
            while True:
                try:
                    await self.look()
                    self._failing = False
                except Exception as error:  # catch everything: if this task died, no limit would act any more
                    self._failed(error)
                await asyncio.sleep(self._every_s)
        finally:
            await self.close()

    async def look(self) -> None:
        """Take the lease if there is work, and do it once."""
        guarded = [rollout for rollout in self._watcher.current.snapshot.all_governing if rollout.guarded]
        if not guarded:
            await self.close()
            return
        self._holds = await self._threads.run(self._registry.hold, self._watch)
        if not self._holds:
            self._seen.clear()
            return
        renewing = asyncio.create_task(self._renew())
        try:
            await self._guard_all(guarded)
        finally:
            renewing.cancel()

    async def close(self) -> None:
        """Give the lease back. The registry may be down."""
        if self._probing is not None:
            self._probing.cancel()
        if self._holds:
            with contextlib.suppress(*FAILURES):
                await self._threads.run(self._registry.release, self._watch)
        self._holds = False
        self._seen.clear()

    async def _renew(self) -> None:
        """Keep the lease during a look, whose tests may take longer than the lease lasts. The caller cancels it."""
        while True:
            await asyncio.sleep(self._every_s)
            with contextlib.suppress(*FAILURES):  # if the lease is lost, the next action raises `LeaseLost`
                await self._renewing.run(self._registry.hold, self._watch)

    async def _guard_all(self, guarded: Sequence[Rollout]) -> None:
        failed: Exception | None = None
        for rollout in guarded:
            try:
                await self._guard(rollout)
            except LeaseLost as error:
                logger.warning("rollout %s: this server did not act: %s", rollout.name, error)
                self._holds = False
                self._seen.clear()
                return
            except Exception as error:  # a rollout that cannot be tested must not keep the others from it
                failed = failed or error
        self._ask_next(guarded)
        if failed is not None:
            raise failed

    async def _guard(self, rollout: Rollout) -> None:
        if rollout.limits:
            mark = await self._threads.run(self._registry.mark)
            if self._seen.get(rollout.name) != mark and time.monotonic() >= self._rested_at.get(rollout.name, 0.0):
                await self._test(rollout)
                self._seen[rollout.name] = mark
        if rollout.schedule is not None:
            moved = await self._threads.run(self._registry.advance, rollout.name, self._watch)
            if moved is not None:
                logger.info("rollout %s: %g %% of the users take part", rollout.name, moved.share / 100)

    async def _test(self, rollout: Rollout) -> None:
        begun = time.monotonic()
        try:
            for decision in await self._threads.run(self._registry.test, rollout.name, self._watch):
                logger.warning("rollout %s: %s: %s", rollout.name, decision.result.limit, decision.result.summary)
        finally:  # also after a failure: the same test would fail again
            ended = time.monotonic()
            self._rested_at[rollout.name] = ended + min(self._rest * (ended - begun), _MOST_S)

    def _ask_next(self, guarded: Sequence[Rollout]) -> None:
        """Start a probe of the next rollout in turn. It runs beside the looks: a slow engine must not delay an action.

        The engine is asked one probe at a time, so rollouts take turns, by their names.
        """
        if not self._canary.idle:
            return
        now = datetime.now(UTC)
        asked = [
            rollout
            for rollout in guarded
            if any(limit.name == "locality" for limit in rollout.limits) and not rollout.treatment.ended(now)
        ]
        if asked:
            turn = min(asked, key=lambda rollout: (rollout.name <= self._probed, rollout.name))
            self._probed = turn.name
            self._probing = asyncio.create_task(self._probe(turn))

    async def _probe(self, rollout: Rollout) -> None:
        try:
            probed = await self._canary.ask(rollout)
            if probed is not None:
                self._metrics.canaries.labels("changed" if probed.changed else "same").inc()
                await self._threads.run(
                    self._registry.add_canary,
                    rollout.name,
                    probed.probe,
                    changed=probed.changed,
                    server=self._watch.server,
                )
        except Exception as error:  # catch everything: nobody awaits this task
            unforeseen = None if isinstance(error, (*FAILURES, TimeoutError)) else error
            why = str(error) or "too late"
            self._metrics.canaries.labels("failed").inc()
            logger.warning("rollout %s: a locality probe has no answer: %s", rollout.name, why, exc_info=unforeseen)

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            unforeseen = None if isinstance(error, FAILURES) else error
            logger.warning("limits of rollouts are not tested for now: %s", error, exc_info=unforeseen)
        self._failing = True
