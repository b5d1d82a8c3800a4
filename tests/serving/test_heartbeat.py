"""A server's heartbeats are written in the order in which they are sent."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from tests.serving.without_engine import run
from vllm_edit.registry.revision import Revision
from vllm_edit.serving.heartbeat import Heartbeat


class Slow:
    """Replaces the registry's servers: a second heartbeat could overtake the slow first heartbeat."""

    def __init__(self) -> None:
        self.begun, self.overtaken = threading.Event(), threading.Event()
        self.written: list[int] = []

    def beat(self, id: str, *, generation: int, **_: Any) -> None:
        if self.begun.is_set():
            self.overtaken.set()
        else:
            self.begun.set()
            self.overtaken.wait(0.3)
        self.written.append(generation)


def test_a_slow_heartbeat_does_not_take_back_a_later_generation() -> None:
    servers = Slow()
    heartbeat = Heartbeat(servers, lambda: True)  # type: ignore[arg-type]

    async def steps() -> None:
        first = asyncio.create_task(heartbeat.beat(Revision(5)))
        await asyncio.to_thread(servers.begun.wait)
        await heartbeat.beat(Revision(6))
        await first

    run(steps())
    assert servers.written == [5, 6]


def test_a_lost_state_was_drained_for_nothing() -> None:
    """After a failover, adapters of patches that the new registry has removed may still be in use."""
    written: list[tuple[int, int, str]] = []

    class Servers:
        def beat(self, id: str, *, generation: int, drained: int, token: str, **_: Any) -> None:
            written.append((generation, drained, token))

    drained = True
    heartbeat = Heartbeat(Servers(), lambda: drained)  # type: ignore[arg-type]
    run(heartbeat.beat(Revision(5, "lost")))
    drained = False
    run(heartbeat.beat(Revision(5, "lost")))
    run(heartbeat.beat(Revision(5, "new")))
    run(heartbeat.beat(Revision(6, "newer")))
    assert written == [(5, 5, "lost"), (5, 5, "lost"), (5, -1, "new"), (6, -1, "newer")]
