"""Work that concurrent callers share: the first starts it, and all get its result or its error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[T]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work named `key`: of the one that is under way, else of a new one."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._until_done(key, work))
            task.add_done_callback(_look_at)
        return await asyncio.shield(task)  # a client that goes away must not stop what others wait for

    async def _until_done(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await work()
        finally:
            del self._running[key]  # here, not in a callback: who finds a task here waits, and never spins


def _look_at(task: asyncio.Task[T]) -> None:
    """When all who waited went away, nobody else looks at its error."""
    if not task.cancelled():
        task.exception()
