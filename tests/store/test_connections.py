"""Connections of one process: enough for its threads, some reserved for following, and an error in one line if none is
free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from tests import postgres
from vllm_edit.errors import EditError, Unavailable
from vllm_edit.registry.database import CONNECTIONS, FOLLOWING, Database
from vllm_edit.registry.registry import Registry


@pytest.fixture
def registry(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr("vllm_edit.registry.database._CHECKOUT_TIMEOUT_S", 0.01)
    made = Registry(registry_url)
    made.create_tenant("acme")
    yield made
    made.close()


@pytest.fixture
def busy(registry: Registry) -> Iterator[Registry]:
    """All connections are in use, for example by changes that wait for a lock."""
    with ExitStack() as held:
        for _ in range(CONNECTIONS):
            held.enter_context(registry._database.read())
        yield registry


def test_a_registry_without_a_free_connection_says_so_in_one_line(busy: Registry) -> None:
    with pytest.raises(
        Unavailable, match=r"cannot be used: all connections of this process to it are in use"
    ) as refused:
        busy.tenants()
    assert "\n" not in str(refused.value)
    assert "QueuePool" not in str(refused.value)


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Registry(f"sqlite:///{tmp_path}")  # SQLite cannot open a folder, nor a database in a folder of others
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != tmp_path.parent)  # root may write everywhere
    with pytest.raises(Unavailable, match=r"its folder .* is not writable, .* copy the store to a folder") as refused:
        made.tenants()
    assert "\n" not in str(refused.value)
    made.close()


def test_a_server_follows_and_is_heard_of_while_no_other_connection_is_free(busy: Registry) -> None:
    generation = busy.generation()
    assert busy.wait_for_change(generation - 1, 0)
    assert busy.snapshot().generation == generation
    busy.servers.beat("a", host="here", pid=1, generation=generation, drained=0)
    other = Registry(busy.url)
    assert [entry.generation for entry in other.servers.live()] == [generation]
    other.close()
    busy.servers.leave("a")


def test_so_many_connections_as_are_meant_and_no_more(registry: Registry) -> None:
    with ExitStack() as held:
        for following, most in ((False, CONNECTIONS), (True, FOLLOWING)):
            for _ in range(most):
                held.enter_context(registry._database.read(following=following))
            with pytest.raises(Unavailable, match="in use"):
                held.enter_context(registry._database.read(following=following))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_registry_in_memory_is_refused(url: str) -> None:
    with pytest.raises(EditError, match=r"sqlite:///FILE or .* got a database in memory"):
        Database(url)


def test_an_option_of_the_url_that_the_driver_does_not_know_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match='cannot be used: invalid connection option "colour"'):
        Registry(f"postgresql://ann@/registry?host={tmp_path}&colour=red").generation()


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://ann:s3cret@db/registry", "s3cret"),
        ("postgresql://ann@db/registry?password=s3cret", "s3cret"),
        ("postgresql://ann:old@db/registry?password=older&password=s3cret", "s3cret"),
        ("postgresql://ann@db/registry?sslpassword=s3cret&sslmode=require", None),
    ],
)
def test_no_password_of_the_url_is_shown(url: str, password: str | None) -> None:
    database = Database(url)
    assert "s3cret" not in str(database)
    assert database.url.password == password
    assert ("sslpassword" in str(database)) == ("sslpassword" in url)
    _, options = database._engine.dialect.create_connect_args(database.url)
    assert "s3cret" in (options.get("password"), options.get("sslpassword"))


def test_the_password_of_a_query_is_in_no_message(tmp_path: Path) -> None:
    registry = Registry(f"postgresql://ann@/registry?host={tmp_path}&password=s3cret&sslpassword=s3cret")
    with pytest.raises(Unavailable, match="cannot be used") as refused:
        registry.generation()
    assert "s3cret" not in str(refused.value)


@pytest.mark.slow
def test_dropped_tables_are_reported_in_one_line(cluster: postgres.Cluster) -> None:
    registry = Registry(make_url(cluster.new_database()))
    registry.create_tenant("acme")
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("drop table generation"))
    with pytest.raises(Unavailable, match='cannot be used: relation "generation" does not exist'):
        registry.generation()
    registry.close()


@pytest.mark.slow
def test_a_lock_that_a_proxy_keeps_after_its_holder_has_ended_is_not_waited_for_without_end(
    cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PgBouncer with transaction pooling keeps the session, with its lock, when its client has closed."""
    monkeypatch.setattr("vllm_edit.registry.database._ALONE_TIMEOUT_S", 1)
    registry = Registry(cluster.new_database())
    with registry.retired.settled(), pytest.raises(Unavailable, match=r"not free in time.*PgBouncer") as refused:
        registry.retired.settled()
    assert "\n" not in str(refused.value)
    with registry.retired.settled():
        pass
    registry.close()
