"""Threads for work that waits for the registry or reads long bodies, separate from the threads that load adapters.

asyncio's default pool is small on a small machine. While the registry hangs, reported outcomes would occupy all of it,
and tenants' requests would wait too. While an object store hangs, loading adapters would occupy all of it, and a server
that still serves would apply no change and be considered dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """At most `most` threads; further work waits. All limits together must not exceed the number of connections
    (`registry.database`), or their threads would wait for each other."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._limiter = CapacityLimiter(most)

    async def run(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """The result of `work`. A cancelled caller stops to wait; the work goes on, and counts until it has ended."""
        running = to_thread.run_sync(partial(work, *arguments, **named), limiter=self._limiter)
        return await asyncio.shield(running)  # anyio frees the thread's place when its own caller is cancelled
