"""Changes wait until every running server follows, and name the servers that do not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import pytest
from sqlalchemy import create_engine, text

from tests.cli.program import Program
from tests.store.example import compiled
from vllm_edit.errors import EditError
from vllm_edit.registry.registry import Registry
from vllm_edit.registry.servers import Servers
from vllm_edit.store.store import Store

AHEAD = 10**6  # a generation beyond any in these tests: a server that reports it follows everything


@pytest.fixture
def store(store: Store) -> Store:
    """A store with two patches, a tenant that is served the first, its key, and a rollout to the second."""
    for seed in range(2):
        store.registry.set_status(store.save(compiled(seed=seed)), "accepted")
    store.registry.create_tenant("acme")
    store.registry.publish("acme", store.names()[1])
    return store


def beat(store: Store, id: str, generation: int) -> None:
    store.registry.servers.beat(id, host=f"gpu-{id}", pid=4711, generation=generation, drained=0)


@contextmanager
def following(registry: Registry) -> Iterator[None]:
    """A server that follows the registry as soon as it changes."""
    ends = Event()

    def serve() -> None:
        generation = registry.generation()
        registry.servers.beat("a", host="gpu-a", pid=1, generation=generation, drained=0)
        beats.set()
        while not ends.is_set():
            if registry.wait_for_change(generation, 0.1):
                generation = registry.generation()
            registry.servers.beat("a", host="gpu-a", pid=1, generation=generation, drained=0)

    beats = Event()
    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(serve)
        assert beats.wait(120)
        yield
        ends.set()
        served.result(120)


def test_without_a_running_server_nothing_more_is_said(program: Program, store: Store) -> None:
    first, second = store.names()[::-1]
    ran = program("tenant", "publish", "acme", second)
    assert (ran.code, ran.out, ran.err) == (0, f"tenant acme is served {second}\n", "")
    printed = program("tenant", "rollback", "acme", "--json").json
    seconds = printed["acknowledged"].pop("seconds")
    assert 0 <= seconds < 10
    assert printed == {
        "tenant": "acme",
        "active": first,
        "acknowledged": {"generation": store.registry.generation(), "servers": [], "missing": [], "silent": []},
    }


def test_a_change_ends_when_the_server_follows(program: Program, store: Store) -> None:
    with following(store.registry):
        ran = program("tenant", "publish", "acme", store.names()[0], "--wait", 120)
        assert ran.code == 0
        assert ran.out.splitlines()[1].startswith("1 server follows after ")
        printed = program("tenant", "rollback", "acme", "--wait", 120, "--json").json["acknowledged"]
        assert (printed["servers"], printed["missing"], printed["generation"]) == (
            ["gpu-a:1"],
            [],
            store.registry.generation(),
        )


def test_many_servers_are_counted(program: Program, store: Store) -> None:
    for id in "ab":
        beat(store, id, AHEAD)
    lines = program("tenant", "publish", "acme", store.names()[0]).out.splitlines()
    assert lines[1].startswith("2 servers follow after ")
    assert lines[1].endswith((" ms", " s"))


def test_every_change_is_valid_and_names_the_servers_that_do_not_follow(program: Program, store: Store) -> None:
    beat(store, "a", AHEAD)
    beat(store, "b", 0)
    beat(store, "c", 0)
    keys = [store.registry.create_api_key(tenant).api_key.id for tenant in ("acme", None)]
    program("rollout", "create", "spring", "--tenant", "acme", "--treatment", "capital")
    for words in (
        ("rollout", "ramp", "spring", "10"),
        ("rollout", "pause", "spring"),
        ("rollout", "promote", "spring"),
        ("rollout", "kill", "spring"),
        ("tenant", "publish", "acme", "capital"),
        ("tenant", "rollback", "acme"),
        ("tenant", "key", "revoke", "acme", keys[0]),
        ("key", "revoke", keys[1]),
    ):
        rows = len(store.registry.audit())
        ran = program(*words, "--wait", "0.02")
        assert (ran.code, ran.out.count("\n"), ran.err.count("\n")) == (1, 1, 1), words
        assert "the change is made" in ran.err
        assert "gpu-b:4711, gpu-c:4711 (2 of 3 running servers)" in ran.err
        assert len(store.registry.audit()) == rows + 1, words
    printed = program("tenant", "publish", "acme", "capital", "--wait", "0.02", "--json")
    assert printed.code == 1
    assert printed.json["acknowledged"]["servers"] == ["gpu-a:4711"]
    assert printed.json["acknowledged"]["missing"] == ["gpu-b:4711", "gpu-c:4711"]


def test_no_server_is_waited_for_if_the_wait_is_zero(program: Program, store: Store) -> None:
    beat(store, "a", 0)
    ran = program("tenant", "publish", "acme", "capital", "--wait", 0)
    assert (ran.code, ran.out.count("\n"), ran.err) == (0, 1, "")
    assert program("tenant", "rollback", "acme", "--wait", 0, "--json").json["acknowledged"] is None
    assert program("tenant", "publish", "acme", "capital", "--wait", -1).code == 2


def silence(store: Store, id: str, seconds: float) -> None:
    """Make a server's heartbeat older by this time."""
    with create_engine(store.registry.url).begin() as connection:
        connection.execute(text("update servers set seen = seen - :s where id = :id"), {"s": seconds, "id": id})


def test_a_server_that_was_silent_before_is_named_in_a_note_and_not_waited_for(program: Program, store: Store) -> None:
    beat(store, "a", AHEAD)
    beat(store, "b", 0)
    silence(store, "b", 185)
    ran = program("tenant", "publish", "acme", "capital")
    assert (ran.code, ran.out.count("\n")) == (0, 2)
    note = "note: no heartbeat for 3 min: gpu-b:4711; it may have died, or still serve an older state"
    assert ran.err.startswith(note)
    assert ran.err.count("\n") == 1
    printed = program("tenant", "rollback", "acme", "--json")
    assert (printed.code, printed.json["acknowledged"]["missing"]) == (0, [])
    assert printed.json["acknowledged"]["silent"] == ["gpu-b:4711"]
    beat(store, "c", 0)
    silence(store, "c", 7200)
    ran = program("tenant", "publish", "acme", "capital")
    assert "no heartbeat for 3 min or longer: gpu-b:4711, gpu-c:4711; they may" in ran.err


def test_a_silent_server_is_listed_until_it_is_declared_dead(program: Program, store: Store) -> None:
    beat(store, "a", AHEAD)
    beat(store, "b", 0)
    silence(store, "b", 3 * 3600 + 1)
    assert [(entry["server"], entry["silent"]) for entry in program("servers", "--json").json] == [
        ("gpu-a:4711", False),
        ("gpu-b:4711", True),
    ]
    assert program("servers").out.splitlines()[2].endswith("silent for 3 h")
    running = program("servers", "--forget", "gpu-a:4711")
    assert (running.code, "gpu-a:4711 is running" in running.err) == (1, True)
    unknown = program("servers", "--forget", "gpu-x:4711")
    assert (unknown.code, "nearest: gpu-b:4711" in unknown.err) == (1, True)
    ran = program("servers", "--forget", "gpu-b:4711", "--who", "ann", "--why", "burnt")
    assert (ran.code, ran.out, ran.err) == (0, "server gpu-b:4711: forgotten\n", "")
    assert [entry["server"] for entry in program("servers", "--json").json] == ["gpu-a:4711"]
    assert program("tenant", "publish", "acme", "capital").err == ""


def test_a_change_is_valid_when_the_registry_is_lost_after_it(
    program: Program, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_arguments: object) -> None:
        raise EditError("the registry cannot be used: gone")

    monkeypatch.setattr(Servers, "wait", lost)
    ran = program("tenant", "publish", "acme", "capital", "--json")
    assert (ran.code, ran.json["active"], ran.json["acknowledged"]) == (1, store.names()[0], None)
    assert ran.err.startswith("vllm-edit: the change is made, but it is unknown which servers follow it: ")


def test_running_servers_are_listed(program: Program, store: Store) -> None:
    assert program("servers", "--json").json == []
    generation = store.registry.generation()
    beat(store, "b", generation - 2)
    beat(store, "a", generation)
    first, second = program("servers", "--json").json
    assert 0 <= first.pop("seen_ago_s") < 10
    expected = {"server": "gpu-a:4711", "generation": generation, "behind": 0, "drained": 0, "silent": False}
    assert first == expected
    assert second["behind"] == 2
    header, *rows = (line.split() for line in program("servers").out.splitlines())
    assert header == ["SERVER", "GENERATION", "BEHIND", "SEEN"]
    assert [row[:3] for row in rows] == [
        ["gpu-a:4711", str(generation), "0"],
        ["gpu-b:4711", str(generation - 2), "2"],
    ]
