"""The log of answers: held in memory, written to the registry in batches by a thread, and deleted after some days.

The log never blocks a request or raises into one. While the registry cannot be written, the newest answers wait in a
bounded queue; older ones are dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from cachetools import FIFOCache
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from vllm_edit.errors import EditError
from vllm_edit.registry.answers import AnswerEntry
from vllm_edit.registry.registry import Registry
from vllm_edit.serving.answer import Answer
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.threads import Threads

logger = logging.getLogger(__name__)

_BATCH = 500  # rows
_SWEPT = 5_000  # rows that a sweep deletes at most; the next sweeps delete the rest
_SWEEP_SECONDS = 3600.0
_MOST_SECONDS = 10.0  # between two tries while the registry cannot be written
_DOWN = (EditError, SQLAlchemyError, OSError)
_UNWRITABLE = (IntegrityError, DataError, ValueError)

Row = TypeVar("Row")


class AnswerLog:
    """The log of one server. `run` is its background task. Call all public methods in the event loop.

    server: this server's name, in every row. remembered: maximum number of answers in memory. queued: maximum number of
    ended answers that wait for the registry. keep_days: older rows are deleted, by any server; 0 keeps them for ever.
    """

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        *,
        server: str,
        remembered: int = 100_000,
        queued: int = 50_000,
        keep_days: float = 30.0,
        every_seconds: float = 0.2,
    ) -> None:
        self._registry, self._metrics, self._server = registry, metrics, server
        self._queued, self._keep_days = queued, keep_days
        self.every_seconds = every_seconds
        self._answers = FIFOCache[str, Answer](remembered)
        self.running = 0  # answers that have begun and not ended
        self._queue: deque[Answer] = deque()
        self._keeping, self._finding = Threads(1), Threads(2)
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()
        self._failed_at = float("-inf")
        self._failing_since: float | None = None

    # Called by the router

    def begin(self, answer: Answer) -> None:
        """Make the answer available by its id."""
        self._answers[answer.id] = answer
        self.running += 1

    def finish(self, answer: Answer) -> None:
        """Queue an ended answer for the next batch. Call `Answer.end` or `Answer.refuse` first."""
        self.running -= 1
        self._queue.append(answer)
        self._drop_oldest()
        if len(self._queue) >= _BATCH:
            self._full.set()

    # Look-ups

    def get(self, id: str) -> Answer | None:
        """An answer of this server that is still in memory."""
        return self._answers.get(id)

    async def find(self, id: str) -> AnswerEntry:
        """An answer of any server, running or ended.

        Raises:
            NotFound: it is not in the log.
            EditError: the registry cannot be read.
        """
        known = self._answers.get(id)
        return known.entry(self._server) if known else await self._finding.run(self._registry.answers.find, id)

    # Writing

    async def flush(self) -> bool:
        """Write the answers that ended before the call. False if the write failed; they stay queued."""
        called = time.monotonic()
        async with self._writing:
            left = len(self._queue)
            while left > 0:
                # A caller that waited during a failed write does not retry, or all callers would queue up.
                if self._failed_at >= called or not await self._write_batch():
                    return False
                left -= _BATCH
        return True

    async def run(self) -> None:
        """Write every `every_seconds`, or as soon as a batch is full; less often while writing fails. Never returns."""
        pause, sweep_at = 0.0, time.monotonic()
        while True:
            await self._rest(pause)
            pause = 0.0 if await self.flush() else min(2 * max(pause, self.every_seconds), _MOST_SECONDS)
            if self._keep_days and not pause and time.monotonic() >= sweep_at:
                sweep_at = time.monotonic() + (0 if await self._sweep() else _SWEEP_SECONDS)

    async def close(self) -> None:
        """Write the queue once. Call this after the last answer, when `run` is cancelled."""
        if not await self.flush():
            logger.error("%d answers are lost: the registry cannot be written, and the server ends", len(self._queue))
            self._metrics.log_dropped.inc(len(self._queue))
            self._queue.clear()

    async def _rest(self, pause: float) -> None:
        """Sleep for `pause` seconds; without a pause, for `every_seconds` or until a batch is full."""
        if pause:
            await asyncio.sleep(pause)
            return
        try:
            async with asyncio.timeout(self.every_seconds):
                await self._full.wait()
        except TimeoutError:
            pass

    async def _write_batch(self) -> bool:
        """Write the oldest rows. On failure, or if the outcome is unknown, put them back: inserts are idempotent."""
        self._full.clear()
        batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
        written = False
        try:
            await self._keeping.run(self._write, batch)
            written = True
        except Exception as error:  # catch everything: if this task died, all later answers would be lost
            if self._failing_since is None:
                logger.warning(
                    "the log of answers cannot be written, they wait in memory: %s",
                    _message(error),
                    exc_info=None if isinstance(error, _DOWN) else error,
                )
            self._failed_at = time.monotonic()
            self._failing_since = self._failing_since or self._failed_at
        finally:
            if not written:
                self._queue.extendleft(reversed(batch))
                self._drop_oldest()
        if written and self._failing_since is not None:
            logger.info("the log of answers is written again, after %.0f s", time.monotonic() - self._failing_since)
            self._failing_since = None
        return written

    def _write(self, batch: Sequence[Answer]) -> None:
        written = self._enter(self._registry.answers.add, [answer.entry(self._server) for answer in batch])
        exposures = [exposure for answer in batch if (exposure := answer.exposure()) is not None]
        self._enter(self._registry.rollouts.expose, exposures)
        self._metrics.log_rows.inc(written)

    def _enter(self, add: Callable[[Sequence[Row]], None], rows: Sequence[Row]) -> int:
        """Add the rows and return the number added. Skip invalid rows, such as those of a rollout that the registry
        does not have, so that they do not block the others."""
        if not rows:
            return 0
        try:
            add(rows)
            return len(rows)
        except _UNWRITABLE as error:
            if len(rows) > 1:
                half = len(rows) // 2
                return self._enter(add, rows[:half]) + self._enter(add, rows[half:])
            logger.error("a row of the log of answers cannot be written: %s", _message(error))
            self._metrics.log_dropped.inc()
            return 0

    def _drop_oldest(self) -> None:
        while len(self._queue) > self._queued:
            self._queue.popleft()
            self._metrics.log_dropped.inc()

    async def _sweep(self) -> bool:
        """Delete a batch of rows, and of texts of shadows, older than the retention; True if more remain.

        The database's clock decides: a server whose own clock is ahead would delete every server's rows.
        """
        try:
            older_than = await self._keeping.run(self._registry.now) - timedelta(days=self._keep_days)
            deleted = await self._keeping.run(self._registry.answers.sweep, older_than, _SWEPT)
            forgotten = await self._keeping.run(self._registry.shadows.forget, older_than, _SWEPT)
            return _SWEPT in (deleted, forgotten)
        except Exception as error:
            unforeseen = None if isinstance(error, _DOWN) else error
            logger.warning(
                "old answers cannot be deleted, tried again in an hour: %s", _message(error), exc_info=unforeseen
            )
            return False


def _message(error: Exception) -> str:
    """The database driver's message in a line. SQLAlchemy's message contains the rows, which are confidential."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
