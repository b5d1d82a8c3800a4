"""Heartbeats of servers, and waiting until all of them follow a change."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from sqlalchemy import create_engine, text

from vllm_edit.errors import EditError, NotFound
from vllm_edit.registry.registry import Registry
from vllm_edit.registry.revision import Revision
from vllm_edit.registry.server_entry import LIVE_S
from vllm_edit.registry.servers import Acknowledged

LONG_S = 120.0  # a limit for a busy machine


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = Registry(registry_url)
    yield made
    made.close()


def beat(
    registry: Registry, id: str, generation: int, drained: int = 0, pid: int = 1, token: str | None = None
) -> None:
    registry.servers.beat(id, host=f"host-{id}", pid=pid, generation=generation, drained=drained, token=token)


def age(registry: Registry, id: str, seconds: float) -> None:
    """Move a server's heartbeat into the past (or the future)."""
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("update servers set seen = seen - :s where id = :id"), {"s": seconds, "id": id})


def summary(found: Acknowledged) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    return found.generation, found.acknowledged, found.missing


def test_a_heartbeat_reports_the_generation_that_a_server_follows_and_is_no_change(registry: Registry) -> None:
    registry.create_tenant("acme")
    before = (registry.generation(), registry.audit())
    for generation, drained in ((0, 0), (1, 0), (1, 1)):
        beat(registry, "a", generation, drained)
        (entry,) = registry.servers.live()
        assert (entry.id, entry.name, entry.generation, entry.drained) == ("a", "host-a:1", generation, drained)
        assert 0 <= entry.seen_ago_s < LIVE_S
    assert (registry.generation(), registry.audit()) == before


def test_a_server_stays_drained_as_far_as_before_only_if_the_registry_has_its_heartbeat_before(
    registry: Registry,
) -> None:
    def drained(generation: int, token: str | None, drained: int | None, before: Revision | None) -> int:
        values = {"generation": generation, "token": token, "drained": drained, "before": before}
        registry.servers.beat("a", host="host-a", pid=1, **values)  # type: ignore[arg-type]
        (entry,) = registry.servers.live()
        return entry.drained

    assert drained(4, None, None, None) == -1, "it has no heartbeat before"
    assert drained(4, None, 4, Revision(4)) == 4
    assert drained(5, "five", None, Revision(4)) == 4
    assert drained(5, "five", None, Revision(5, "five")) == 4
    assert drained(6, "six", None, Revision(5, "lost")) == -1
    assert drained(6, "six", 6, Revision(6, "six")) == 6
    assert drained(7, "seven", None, Revision(7, "lost")) == -1


def test_a_server_is_live_until_it_leaves_or_is_silent(registry: Registry) -> None:
    for id in "cab":
        beat(registry, id, 1)
    assert [entry.id for entry in registry.servers.live()] == ["a", "b", "c"]
    registry.servers.leave("a")
    registry.servers.leave("a")
    age(registry, "b", LIVE_S + 1)
    assert [entry.id for entry in registry.servers.live()] == ["c"]
    age(registry, "c", -3600)
    assert registry.servers.live() == [], "the database's clock was set back since"
    for id in "bc":
        beat(registry, id, 1)
    assert [entry.id for entry in registry.servers.live()] == ["b", "c"]


def test_servers_that_died_long_ago_are_swept_when_one_comes(registry: Registry) -> None:
    for id in "ab":
        beat(registry, id, 1)
    age(registry, "a", 48 * 3600)
    beat(registry, "c", 1)
    with create_engine(registry.url).connect() as connection:
        assert connection.execute(text("select id from servers order by id")).scalars().all() == ["b", "c"]


def test_waiting_names_servers_that_follow_and_servers_that_do_not(registry: Registry) -> None:
    assert summary(registry.servers.wait(7, LONG_S)) == (7, (), ())
    beat(registry, "a", 7, drained=6)
    beat(registry, "b", 8, drained=7)
    assert summary(registry.servers.wait(7, LONG_S)) == (7, ("host-a:1", "host-b:1"), ())
    assert summary(registry.servers.wait(7, 0.05, drained=True)) == (7, ("host-b:1",), ("host-a:1",))
    late = registry.servers.wait(8, 0.05)
    assert summary(late) == (8, ("host-b:1",), ("host-a:1",))
    assert late.seconds >= 0.05
    assert summary(registry.servers.wait(8, 0)) == summary(late)


def test_a_state_that_the_registry_has_lost_acknowledges_nothing_whatever_its_generation(registry: Registry) -> None:
    registry.create_tenant("acme")
    own = registry.revision()
    beat(registry, "a", own.generation, drained=own.generation, token=own.token)
    for generation in (own.generation, own.generation + 1):
        beat(registry, "b", generation, drained=generation, token="lost")
        for drained in (False, True):
            found = registry.servers.wait(own.generation, 0, drained)
            assert summary(found) == (own.generation, ("host-a:1",), ("host-b:1",))
    age(registry, "b", LIVE_S + 1)
    assert registry.servers.wait(own.generation, 0).silent == ("host-b:1",)


def test_a_change_while_waiting_does_not_make_who_followed_before_wait_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.create_tenant("acme")
    own = registry.revision()
    beat(registry, "a", own.generation - 1)

    def follows_and_another_changes(_seconds: float) -> None:
        beat(registry, "a", own.generation, token=own.token)
        registry.create_tenant("globex")

    monkeypatch.setattr("vllm_edit.registry.servers.time.sleep", follows_and_another_changes)
    assert summary(registry.servers.wait(own.generation, LONG_S)) == (own.generation, ("host-a:1",), ())


def test_what_a_server_reported_before_counts_in_later_waits_until_the_registry_loses_changes(
    registry: Registry,
) -> None:
    def change_back_to(generation: int) -> None:
        with create_engine(registry.url).begin() as connection:
            connection.execute(text("update generation set value = :g, token = 'restored'"), {"g": generation})

    own, seen = registry.revision(), registry.servers.seen()
    beat(registry, "a", own.generation, drained=own.generation, token=own.token)
    registry.servers.wait(own.generation, 0, seen=seen)
    for tenant in ("acme", "globex"):
        registry.create_tenant(tenant)
    between = own.generation + 1  # no wait saw this state
    beat(registry, "a", between, drained=own.generation, token="of a state between")
    for drained in (False, True):
        assert registry.servers.wait(own.generation, 0, drained, seen=seen).missing == ()
        assert registry.servers.wait(between, 0, drained, seen=seen).missing == ("host-a:1",)
    change_back_to(between)
    for drained in (False, True):
        assert registry.servers.wait(own.generation, 0, drained, seen=seen).missing == ("host-a:1",)


def test_a_later_heartbeat_takes_back_what_a_server_reported_before(registry: Registry) -> None:
    own, seen = registry.revision(), registry.servers.seen()
    beat(registry, "a", own.generation, drained=own.generation, token=own.token)
    assert registry.servers.wait(own.generation, 0, drained=True, seen=seen).missing == ()
    beat(registry, "a", own.generation + 1, drained=-1, token="unknown")
    assert registry.servers.wait(own.generation, 0, drained=True, seen=seen).missing == ("host-a:1",)


def test_waiting_ends_when_the_last_server_follows(registry: Registry) -> None:
    beat(registry, "a", 2)
    beat(registry, "b", 1)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(registry.servers.wait, 2, LONG_S)
        beat(registry, "c", 1)
        assert not waiting.done()
        beat(registry, "c", 2)
        assert not waiting.done()
        beat(registry, "b", 2)
        found = waiting.result()
    assert found.missing == ()
    assert {"host-a:1", "host-b:1"} <= set(found.acknowledged)


def test_a_server_that_leaves_is_not_waited_for_and_one_that_falls_silent_is_missing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(registry, "a", 1)
    beat(registry, "b", 1)
    looked, silent = Event(), Event()

    def looks_once(_seconds: float) -> None:
        looked.set()
        assert silent.wait(LONG_S)

    monkeypatch.setattr("vllm_edit.registry.servers.time.sleep", looks_once)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(registry.servers.wait, 2, 0.05)
        assert looked.wait(LONG_S)
        registry.servers.leave("a")
        age(registry, "b", LIVE_S + 1)
        silent.set()
        found = waiting.result()
    assert summary(found) == (2, (), ("host-b:1",))
    assert summary(registry.servers.wait(2, LONG_S)) == (2, (), ()), "who was silent before is not waited for"


def test_servers_that_were_silent_before_are_named_if_they_do_not_follow(registry: Registry) -> None:
    for id, generation in (("a", 2), ("b", 1), ("c", 1), ("d", 2), ("e", 1)):
        beat(registry, id, generation)
    for id, seconds in (("b", LIVE_S + 90), ("c", LIVE_S + 7200), ("d", LIVE_S + 1), ("e", 25 * 3600)):
        age(registry, id, seconds)
    found = registry.servers.wait(2, LONG_S)
    assert summary(found) == (2, ("host-a:1",), ())
    assert found.silent == ("host-b:1", "host-c:1"), "d follows, whether it lives or not; e is over a day old"
    assert LIVE_S + 90 <= found.silent_s < LIVE_S + 90 + LONG_S
    assert found.as_record().silent == found.silent
    assert [entry.id for entry in registry.servers.known() if entry.silent] == ["b", "c", "d"]
    registry.servers.leave("b")
    beat(registry, "c", 2)
    assert registry.servers.wait(2, LONG_S).silent == ()


def test_a_silent_server_is_forgotten_on_request_and_known_again_when_it_lives(registry: Registry) -> None:
    beat(registry, "a", 1)
    beat(registry, "b", 1)
    age(registry, "b", 3600)
    before = registry.generation()
    for name, error in (("host-a:1", EditError), ("host-x:1", NotFound), ("", NotFound)):
        with pytest.raises(error):
            registry.servers.forget(name)
    assert (registry.generation(), registry.audit()) == (before, [])
    registry.servers.forget("host-b:1", why="burnt", by="ann")
    assert [entry.id for entry in registry.servers.known()] == ["a"]
    assert [(row.what, row.who, row.why) for row in registry.audit()] == [("server.forget", "ann", "burnt")]
    beat(registry, "b", 1)
    assert [entry.id for entry in registry.servers.live()] == ["a", "b"]
