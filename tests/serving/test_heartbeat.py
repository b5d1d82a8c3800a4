"""A server's heartbeats: they are written in the order in which they are sent, and say what the server has drained."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import connect
from typing import Any
from unittest.mock import Mock

import pytest

from tests.serving.without_engine import run
from vllm_edit.errors import Unavailable
from vllm_edit.registry.registry import Registry
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


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    made.create_tenant("acme")
    yield made
    made.close()


class Server:
    """A server that has drained the registry's state, until a request uses a removed patch."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._all = registry, True
        self._heartbeat = Heartbeat(registry.servers, lambda: self._all)
        self.drained()

    def uses_a_removed_patch(self) -> None:
        self._all = False

    def drained(self, revision: Revision | None = None) -> int:
        """The state up to which it reports that it has drained removed patches, after a heartbeat from `revision`."""
        run(self._heartbeat.beat(revision or self._registry.revision()))
        (entry,) = self._registry.servers.live()
        return entry.drained


def test_what_a_server_has_drained_stays_drained_while_it_follows_changes(registry: Registry) -> None:
    server, before = Server(registry), registry.revision()
    server.uses_a_removed_patch()
    for tenant in ("globex", "initech"):
        registry.create_tenant(tenant)
        assert server.drained() == before.generation


@pytest.mark.parametrize("changes", [0, 1, 3])
def test_what_a_server_drained_for_a_lost_state_is_not_drained(
    registry: Registry, tmp_path: Path, changes: int
) -> None:
    """After a restore, adapters of patches that the restored registry has removed may still be in use.

    It does not matter whether the restored registry has fewer changes, as many as the lost one, or more.
    """
    server, copy = Server(registry), tmp_path / "copy.db"
    with closing(connect(tmp_path / "registry.db")) as now, closing(connect(copy)) as kept:
        now.backup(kept)
    registry.create_tenant("lost")
    assert server.drained() == registry.revision().generation
    server.uses_a_removed_patch()
    with closing(connect(copy)) as kept, closing(connect(tmp_path / "registry.db")) as now:
        kept.backup(now)
    for number in range(changes):
        registry.create_tenant(f"new{number}")
    assert server.drained() == -1


def test_what_a_server_drained_for_a_state_that_it_could_not_report_is_not_drained(registry: Registry) -> None:
    """A server that is cut off follows a state that the registry then loses."""
    server, before = Server(registry), registry.revision()
    server.uses_a_removed_patch()
    with pytest.MonkeyPatch.context() as cut_off:
        cut_off.setattr(registry.servers, "beat", Mock(side_effect=Unavailable("the registry cannot be reached")))
        with pytest.raises(Unavailable):
            server.drained(Revision(before.generation + 1, "lost"))
    for tenant in ("globex", "initech"):
        registry.create_tenant(tenant)
    assert server.drained() == -1
