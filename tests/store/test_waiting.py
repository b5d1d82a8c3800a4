"""Waiting for the registry's next change, in other threads, and over restarts of the database."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests import postgres
from vllm_edit.errors import EditError
from vllm_edit.registry.registry import Registry

LONG_S, BUSY_S = 3600.0, 120.0  # longer than any test; a limit for a busy machine


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = Registry(registry_url)
    yield made
    made.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


@pytest.fixture
def notified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only notifications report a change; the generation is not polled."""
    monkeypatch.setattr("vllm_edit.registry.notifications._LOOK_S", LONG_S)


def begin(threads: ThreadPoolExecutor, registry: Registry, generation: int) -> Future[bool]:
    return threads.submit(registry.wait_for_change, generation, LONG_S)


def test_waiting_is_over_at_once_when_something_changed_before(registry: Registry) -> None:
    assert registry.wait_for_change(-1, LONG_S)
    assert not registry.wait_for_change(0, 0)
    registry.create_tenant("acme")
    assert registry.wait_for_change(0, 0)


def test_another_state_with_the_same_generation_is_a_change(registry: Registry) -> None:
    registry.create_tenant("acme")
    known = registry.revision()
    assert not registry.wait_for_change(known.generation, 0, known.token)
    assert registry.wait_for_change(known.generation, LONG_S, "lost")


@pytest.mark.usefixtures("notified")
def test_every_change_by_any_writer_ends_waiting(registry: Registry, threads: ThreadPoolExecutor) -> None:
    other = Registry(registry.url)
    for n in range(20):
        generation = registry.generation()
        waits = [begin(threads, registry, generation) for _ in range(2)]
        other.create_tenant(f"tenant{n}")
        assert [wait.result(BUSY_S) for wait in waits] == [True, True]
    other.close()


@pytest.mark.usefixtures("notified")
def test_an_undone_change_or_a_log_row_does_not_end_waiting(registry: Registry) -> None:
    registry.create_tenant("acme")
    generation = registry.generation()
    with pytest.raises(EditError):
        registry.create_tenant("acme")
    registry.servers.beat("a", host="host", pid=1, generation=1, drained=1)
    assert not registry.wait_for_change(generation, 0.3)


def test_a_change_without_a_notification_is_seen_all_the_same(registry: Registry, threads: ThreadPoolExecutor) -> None:
    waiting = begin(threads, registry, registry.generation())
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("update generation set value = value + 1"))
    assert waiting.result(BUSY_S)


def test_closing_ends_waiting_in_another_thread(registry: Registry, threads: ThreadPoolExecutor) -> None:
    waits = [begin(threads, registry, 0) for _ in range(2)]
    registry.close()
    assert [wait.result(BUSY_S) for wait in waits] == [False, False]
    assert not registry.wait_for_change(0, LONG_S)


def test_waiting_for_a_registry_that_is_gone_is_an_error(tmp_path: Path) -> None:
    for url in (
        f"sqlite:///{tmp_path / 'missing' / 'registry.db'}",
        f"postgresql://ann:secret@/registry?host={tmp_path}",
    ):
        with pytest.raises(EditError, match="cannot be used") as caught:
            Registry(url).wait_for_change(0, LONG_S)
        assert "secret" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("notified")
def test_waiting_continues_when_only_its_connection_is_lost(
    cluster: postgres.Cluster, threads: ThreadPoolExecutor
) -> None:
    registry = Registry(cluster.new_database())
    other = Registry(registry.url)
    assert other.generation() == 0
    waiting = begin(threads, registry, 0)
    lost = text(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where query like 'LISTEN%' and datname = current_database()"
    )
    with create_engine(registry.url, isolation_level="AUTOCOMMIT").connect() as connection:
        while connection.execute(lost).scalar() == 0:
            pass
    other.create_tenant("acme")
    assert waiting.result(BUSY_S)
    registry.close()
    other.close()


@pytest.mark.slow
@pytest.mark.usefixtures("notified")
def test_a_restart_of_the_database_is_an_error_meanwhile_and_loses_no_change(
    cluster: postgres.Cluster, threads: ThreadPoolExecutor
) -> None:
    registry = Registry(cluster.new_database())
    registry.create_tenant("acme")
    assert not registry.wait_for_change(1, 0)
    waiting = begin(threads, registry, 1)
    cluster.stop()
    try:
        with pytest.raises(EditError, match="cannot be used"):
            waiting.result(BUSY_S)
        with pytest.raises(EditError, match="cannot be used"):
            registry.wait_for_change(1, LONG_S)
    finally:
        cluster.start()
    other = Registry(registry.url)
    other.create_tenant("globex")
    assert registry.wait_for_change(1, LONG_S)
    waiting = begin(threads, registry, 2)
    other.create_tenant("initech")
    assert waiting.result(BUSY_S)
    registry.close()
    other.close()
