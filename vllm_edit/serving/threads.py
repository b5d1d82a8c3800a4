"""Thread pools for work that waits for the registry or reads long bodies, separate from the threads that load adapters.

asyncio's default pool is small on a small machine. While the registry hangs, reported outcomes would occupy all of it,
and tenants' requests would wait too. While an object store hangs, loading adapters would occupy all of it, and a server
that still serves would apply no change and be considered dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """A pool of at most `most` threads; further work is queued. All pools together must not exceed the number of
    connections (`registry.database`), or their threads would wait for each other."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="vllm-edit-registry")

    async def run(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments, **named))
