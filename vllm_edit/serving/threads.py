"""Threads for work that waits for the registry, or reads long bodies: not those in which adapters are read.

asyncio's own are few on a small machine. While the registry hangs, outcomes that clients report would take them all,
and the next tenant's request would wait too; while an object store hangs, adapters would take them all, and a server
that serves on would follow no change and be taken for dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """At most `most` of them; what comes beyond waits for its turn. Together they are no more than the connections
    that there are (`registry.database`), or they would wait for each other."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="vllm-edit-registry")

    async def run(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments, **named))
