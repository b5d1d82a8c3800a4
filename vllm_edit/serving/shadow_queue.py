"""The answers that wait to be repeated by another arm: drawn at random, few, and dropped before anything else.

A request's path only draws, and appends to the queue when its answer has ended. Call everything in the event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from vllm_edit.rollout.buckets import BUCKETS
from vllm_edit.rollout.decision import Choice
from vllm_edit.serving.answer import Answer
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.shadow_copy import ShadowCopy

_LONGEST = 2**14  # bytes of a request that is copied
_POLL_S = 0.02  # between two looks whether the server is idle, while something waits


@dataclass
class _Running:
    """The answer that is repeated now. cancelled: vLLM's routes answer a cancelled request as if it had failed."""

    rollout: str
    task: asyncio.Task[object]
    interruptible: bool
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True
        self.task.cancel()


class ShadowQueue:
    """The queue of one server. most: maximum number of answers that wait; the oldest is dropped for a new one."""

    def __init__(self, metrics: Metrics, *, most: int = 32, seed: int | None = None) -> None:
        self._metrics, self._most = metrics, most
        self._random = random.Random(seed)  # seeded by the operating system by default
        self._waiting: deque[ShadowCopy] = deque()
        self._filled = asyncio.Event()
        self._running: _Running | None = None
        self._shadowing: Collection[str] = ()
        self.full: set[str] = set()  # rollouts that take no more
        self.dropped: Counter[str] = Counter()  # by rollout, since the server's start
        self.failed: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    # Called on a request's path

    def draw(self, choice: Choice, route: str, raw: bytes) -> ShadowCopy | None:
        """Draw a request at random; None for the others."""
        shadowed = choice.shadowed
        if shadowed is None or choice.tenant is None or shadowed.rollout in self.full:
            return None
        if self._random.randrange(BUCKETS) >= shadowed.shadow.share:
            return None
        if len(raw) > _LONGEST:
            self.drop(shadowed.rollout)
            return None
        return ShadowCopy(shadowed, choice.tenant, route, raw)

    def interrupt(self) -> None:
        """A client asks: drop the shadow that is running, unless the engine serves it at a lower priority."""
        if self._running is not None and self._running.interruptible:
            self._running.cancel()

    def offer(self, copy: ShadowCopy, answer: Answer) -> None:
        """Queue an answer that has ended. One that failed, or that its client left, does not count as an answer."""
        copy.answer = answer
        if not copy.answered:
            return
        if copy.too_long or copy.shadowed.rollout not in self._shadowing:
            self.drop(copy.shadowed.rollout)
            return
        if len(self._waiting) >= self._most:
            self.drop(self._waiting.popleft().shadowed.rollout)
        self._waiting.append(copy)
        self._filled.set()

    # Called by others

    async def take(self, ready: Callable[[], bool], within_s: float) -> ShadowCopy | None:
        """The oldest answer, as soon as the server is `ready`; None if there is none within the time."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    await self._filled.wait()
                    if self._waiting and ready():
                        return self._popped()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return None

    async def run(self, copy: ShadowCopy, task: asyncio.Task[object], *, interruptible: bool) -> bool:
        """Wait for the task that repeats the answer; return False if it was dropped meanwhile."""
        running = self._running = _Running(copy.shadowed.rollout, task, interruptible)
        try:
            await asyncio.wait([task])
        finally:
            self._running = None
            if not task.done():  # the server ends
                running.cancel()
            if running.cancelled:
                self.drop(running.rollout)
        return not running.cancelled

    def follow(self, shadowing: Collection[str]) -> None:
        """Drop the answers of all other rollouts, also those that are still running: they are killed, or their shadow
        is off."""
        self._shadowing = shadowing
        for copy in [copy for copy in self._waiting if copy.shadowed.rollout not in shadowing]:
            self._waiting.remove(copy)
            self.drop(copy.shadowed.rollout)
        if not self._waiting:
            self._filled.clear()
        if self._running is not None and self._running.rollout not in shadowing:
            self._running.cancel()

    def drop(self, rollout: str) -> None:
        """Count a drawn answer that is not repeated."""
        self.dropped[rollout] += 1
        self._metrics.shadows.labels("dropped").inc()

    def fail(self, rollout: str) -> None:
        """Count an answer that the other arm could not repeat."""
        self.failed[rollout] += 1
        self._metrics.shadows.labels("failed").inc()

    def _popped(self) -> ShadowCopy:
        copy = self._waiting.popleft()
        if not self._waiting:
            self._filled.clear()
        return copy
