"""Threads that wait for the registry fit the connections that there are to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving import places
from tests.serving.without_engine import Place
from vllm_edit.registry.database import CONNECTIONS, FOLLOWING
from vllm_edit.serving import threads
from vllm_edit.serving.settings import Settings


def test_no_thread_of_a_server_waits_for_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = places.make_store(tmp_path / "template", places.make_site(places.make_model(tmp_path / "model")))
    store.registry.close()
    made: list[int] = []
    executor = threads.ThreadPoolExecutor

    def counted(most: int, **named: object) -> object:
        made.append(most)
        return executor(most, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(threads, "ThreadPoolExecutor", counted)
    place = Place(tmp_path, tmp_path / "template", Settings(store="here"))
    following = place.service.watcher._threads.most + place.service.heartbeat._own.most
    assert following <= FOLLOWING
    assert len(made) > 5
    assert sum(made) - following <= CONNECTIONS
