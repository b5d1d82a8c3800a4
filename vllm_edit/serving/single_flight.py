"""Single flight: concurrent callers share one run of the same work, and all get its result or its error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[T]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work named `key`: of the run in progress, else of a new run."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._until_done(key, work))
            task.add_done_callback(retrieve_error)
        return await asyncio.shield(task)  # a client's disconnect must not cancel work that others wait for

    async def _until_done(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await work()
        finally:
            del self._running[key]  # here, not in a done-callback, so that waiters never busy-loop


def retrieve_error(task: asyncio.Task[T]) -> None:
    """Retrieve the task's error, in case nobody waits for it any more; asyncio would log it otherwise."""
    if not task.cancelled():
        task.exception()
