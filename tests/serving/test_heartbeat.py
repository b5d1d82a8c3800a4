"""A server's heartbeats are written in the order in which they are sent."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from tests.serving.without_engine import run
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
        first = asyncio.create_task(heartbeat.beat(5))
        await asyncio.to_thread(servers.begun.wait)
        await heartbeat.beat(6)
        await first

    run(steps())
    assert servers.written == [5, 6]
