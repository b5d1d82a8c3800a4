"""Threads that wait for the registry do not outnumber its connections."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.serving import places
from tests.serving.without_engine import Place
from vllm_edit.registry.database import CONNECTIONS, FOLLOWING
from vllm_edit.serving import threads
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.threads import Threads


def test_no_thread_of_a_server_waits_for_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = places.make_store(tmp_path / "template", places.make_site(places.make_model(tmp_path / "model")))
    store.registry.close()
    made: list[int] = []
    limiter = threads.CapacityLimiter

    def counted(most: int) -> object:
        made.append(most)
        return limiter(most)

    monkeypatch.setattr(threads, "CapacityLimiter", counted)
    place = Place(tmp_path, tmp_path / "template", Settings(store="here"))
    following = place.service.watcher._threads.most + place.service.heartbeat._own.most
    assert following <= FOLLOWING
    assert len(made) > 5
    assert sum(made) - following <= CONNECTIONS


def test_work_whose_caller_is_cancelled_still_counts_until_it_ends() -> None:
    pool, release = Threads(1), threading.Event()

    async def steps() -> None:
        first = asyncio.create_task(pool.run(release.wait))
        await asyncio.sleep(0.05)
        first.cancel()
        second = asyncio.create_task(pool.run(str, 2))
        await asyncio.sleep(0.05)
        assert first.cancelled()
        assert not second.done(), "a second thread runs beside the first"
        release.set()
        assert await second == "2"

    asyncio.run(steps())
