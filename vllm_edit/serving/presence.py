"""This server among those of its registry: what it follows, told by heartbeats, so that whoever changes something can
wait until all do."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable

from vllm_edit.registry.servers import Acknowledged, Servers
from vllm_edit.serving.threads import Threads


class Presence:
    """drained: whether no adapter of a patch that was removed is left in the engine or on this node's disk."""

    def __init__(self, servers: Servers, drained: Callable[[], bool]) -> None:
        self._servers, self._is_drained = servers, drained
        self._id = secrets.token_hex(16)
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._drained = -1
        self._own, self._waiting = Threads(2), Threads(16)  # to beat and to leave; for all who wait for others
        self._telling = asyncio.Lock()  # what is told later is written later: else a server would seem to go back

    @property
    def name(self) -> str:
        """As people know it: host:pid."""
        return f"{self._host}:{self._pid}"

    async def tell(self, generation: int) -> None:
        """Say that requests are decided from this generation now.

        Raises:
            EditError: the registry cannot be reached.
        """
        if self._is_drained():
            self._drained = generation
        async with self._telling:
            await self._own.run(
                self._servers.beat,
                self._id,
                host=self._host,
                pid=self._pid,
                generation=generation,
                drained=self._drained,
            )

    async def followed(self, generation: int, within_s: float) -> Acknowledged:
        """Wait until every live server follows, this one among them."""
        return await self._waiting.run(self._servers.wait, generation, within_s)

    async def leave(self) -> None:
        """Nobody need wait for this server any more."""
        await self._own.run(self._servers.leave, self._id)
