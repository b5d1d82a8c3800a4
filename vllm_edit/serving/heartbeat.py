"""Heartbeat: reports which registry generation this server has applied, so that changes can wait for all servers."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable

from vllm_edit.registry.revision import Revision
from vllm_edit.registry.servers import Acknowledged, Servers
from vllm_edit.serving.threads import Threads


class Heartbeat:
    """Sends this server's heartbeats. `drained` returns True if no adapter of a removed patch is left on this node."""

    def __init__(self, servers: Servers, drained: Callable[[], bool]) -> None:
        self._servers, self._is_drained = servers, drained
        self._id = secrets.token_hex(16)
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._sent: Revision | None = None  # with the last heartbeat, which the registry may not have got
        self._own, self._waiting = Threads(2), Threads(16)  # for heartbeats; for callers of `followed`
        self._beating = asyncio.Lock()  # keeps heartbeats in order, so that the generation never seems to go back

    @property
    def name(self) -> str:
        """The server's readable name, host:pid."""
        return f"{self._host}:{self._pid}"

    async def beat(self, revision: Revision) -> None:
        """Report that this server now decides requests from the state `revision`.

        Raises:
            EditError: the registry cannot be reached.
        """
        drained = revision.generation if self._is_drained() else None
        async with self._beating:
            before, self._sent = self._sent, revision
            await self._own.run(
                self._servers.beat,
                self._id,
                host=self._host,
                pid=self._pid,
                generation=revision.generation,
                drained=drained,
                token=revision.token,
                before=before,
            )

    async def followed(self, generation: int, within_s: float) -> Acknowledged:
        """Wait up to `within_s` seconds until every live server, including this one, has applied `generation`."""
        return await self._waiting.run(self._servers.wait, generation, within_s)

    async def leave(self) -> None:
        """Remove this server from the list that changes wait for."""
        await self._own.run(self._servers.leave, self._id)
