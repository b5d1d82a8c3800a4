"""Limits that act and schedules that advance: by one server, once, audited; and a person who is never in their way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import create_engine, text

from tests.postgres import Cluster
from tests.rollout.example import failing, published, rollout
from vllm_edit.errors import EditError
from vllm_edit.registry import exposures
from vllm_edit.registry.database import Database
from vllm_edit.registry.leases import LEASE_S, LeaseLost
from vllm_edit.registry.registry import Registry
from vllm_edit.registry.rollout_guard import Watch
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.schedule import parse_schedule

FIRST, SECOND = Watch("a" * 32, "node-a:1"), Watch("b" * 32, "node-b:2")


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = published(registry_url, ["acme"])
    yield made
    made.close()


def begin(registry: Registry, *limits: str, schedule: str | None = None) -> Rollout:
    """A running rollout of everyone with these limits; or one that follows a schedule."""
    registry.rollouts.create(rollout(limits=tuple(map(parse_limit, limits))))
    if schedule is not None:
        return registry.rollouts.follow("spring", parse_schedule(schedule))
    return registry.rollouts.ramp("spring", 100)


def fail(registry: Registry) -> None:
    """Log answers of users, of which all on treatment failed."""
    registry.rollouts.expose(failing(replace(registry.rollouts.find("spring"), share=10_000)))


def let_time_pass(registry: Registry, seconds: float) -> None:
    """Move the lease, and the present step of the schedule, into the past."""
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("update leases set expires = expires - :s"), {"s": seconds})
        found = connection.execute(text("select schedule from rollouts where name = 'spring'")).scalar()
        if found is not None:
            schedule = json.loads(found)
            began = datetime.fromisoformat(schedule["since"]) - timedelta(seconds=seconds)
            schedule["since"] = began.isoformat()
            connection.execute(text("update rollouts set schedule = :s"), {"s": json.dumps(schedule)})


def rows(registry: Registry) -> list[str]:
    """The steps in the audit, after the rollout's creation and its first ramp."""
    return [row.what for row in registry.audit("acme") if row.what.startswith("rollout.")][2:]


def test_a_limit_kills_and_the_audit_has_the_numbers_that_decided(registry: Registry) -> None:
    begin(registry, "errors=kill", "slower:2s=warn")
    assert registry.guard.hold(FIRST)
    assert registry.guard.test("spring", FIRST) == ()
    fail(registry)
    before = registry.generation()
    decisions = registry.guard.test("spring", FIRST)
    assert [decision.result.limit for decision in decisions] == ["errors=kill", "slower:2s=warn"]
    killed = registry.rollouts.find("spring")
    assert (killed.state, killed.governs) == ("killed", True)
    assert registry.generation() == before + 1, "servers follow it as they follow a person's kill"
    row = registry.audit("acme")[-1]
    assert (row.what, row.who) == ("rollout.kill", "limit at node-a:1")
    assert "limit errors=kill: treatment 1 (n = " in row.why
    assert "control 0 (n = " in row.why
    written = json.loads(row.new)
    assert written["state"] == "killed"
    assert written["decisions"][0]["result"]["excess"]["low"] > 0
    assert registry.guard.test("spring", FIRST) == ()
    assert registry.audit("acme")[-1] == row
    report = registry.rollouts.report("spring")
    assert list(report.decisions) == list(decisions)
    assert [result.exceeded for result in report.limits] == [True, True]


def test_a_limit_pauses_and_a_person_who_ramps_again_is_not_stopped_by_it(registry: Registry) -> None:
    begin(registry, "errors=pause")
    fail(registry)
    registry.guard.hold(FIRST)
    assert registry.guard.test("spring", FIRST)
    assert registry.rollouts.find("spring").state == "paused"
    registry.rollouts.ramp("spring", 100)
    assert registry.guard.test("spring", FIRST) == ()
    assert registry.rollouts.find("spring").state == "ramping"
    assert rows(registry) == ["rollout.pause", "rollout.ramp"]


def test_a_limit_that_warns_holds_the_schedule_and_nothing_else(registry: Registry) -> None:
    begin(registry, "errors=warn", schedule="1% 1h, 10% 1h, 50%")
    fail(registry)
    registry.guard.hold(FIRST)
    assert registry.guard.test("spring", FIRST)
    warned = registry.rollouts.find("spring")
    assert (warned.state, warned.share) == ("ramping", 100)
    assert warned.schedule is not None
    assert warned.schedule.held == "errors=warn"
    assert rows(registry) == ["rollout.warn"]
    assert any("limit errors=warn is exceeded" in line for line in registry.rollouts.report("spring").warnings)
    registry.rollouts.follow("spring", parse_schedule("10% 1h, 50%"))
    assert registry.guard.test("spring", FIRST) == ()
    followed = registry.rollouts.find("spring").schedule
    assert followed is not None
    assert followed.next_at is not None, "a person has seen it, and goes on"


def test_the_strictest_of_several_actions_is_taken(registry: Registry) -> None:
    begin(registry, "errors=warn", "slower:2s=kill", "cut=pause")
    fail(registry)
    registry.guard.hold(FIRST)
    assert len(registry.guard.test("spring", FIRST)) == 2
    assert registry.rollouts.find("spring").state == "killed"


def test_a_rollout_whose_arms_are_alike_is_left_alone(registry: Registry) -> None:
    running = begin(registry, "errors=kill", "cut=pause", "slower:2s=warn")
    registry.rollouts.expose(replace(exposure, failed=True) for exposure in failing(running, users=200))
    registry.guard.hold(FIRST)
    before = registry.generation()
    assert registry.guard.test("spring", FIRST) == ()
    assert registry.generation() == before


def test_only_the_first_answer_of_a_user_counts_in_the_order_of_arrival(registry: Registry) -> None:
    running = begin(registry, "errors=kill")
    good = [replace(exposure, failed=False) for exposure in failing(running)]
    registry.rollouts.expose(good)
    registry.rollouts.expose(replace(exposure, id=f"again-{exposure.id}", failed=True) for exposure in good)
    [result] = registry.rollouts.report("spring").limits
    assert (result.treatment.mean, result.control and result.control.mean) == (0.0, 0.0)
    assert registry.rollouts.report("spring").traffic["treatment"].failed > 0


def test_servers_that_log_the_same_users_at_once_wait_for_each_other(registry: Registry) -> None:
    running = begin(registry, "errors=kill")
    exposures = failing(running, users=200)
    batches = [
        [replace(exposure, id=f"{exposure.id}-{server}") for exposure in exposures[:: 1 if server % 2 else -1]]
        for server in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(registry.rollouts.expose, batches))
    found = registry.rollouts.report("spring")
    assert found.traffic["treatment"].requests == 8 * found.traffic["treatment"].units
    assert found.limits[0].treatment.n == found.traffic["treatment"].units


def test_locality_probes_of_servers_kill_a_treatment_that_changes_other_answers(registry: Registry) -> None:
    begin(registry, "locality+5%=kill")
    registry.guard.hold(FIRST)
    mark = registry.guard.mark()
    for number in range(60):
        registry.guard.add_canary("spring", f"probe{number % 7}", changed=number % 2 == 0, server="node-a:1")
    assert registry.guard.mark() != mark
    [decision] = registry.guard.test("spring", FIRST)
    assert (decision.result.treatment.n, decision.result.control) == (60, None)
    assert registry.rollouts.find("spring").state == "killed"


# The lease


def test_one_server_at_a_time_has_the_lease(registry: Registry) -> None:
    begin(registry, "errors=kill")
    before = registry.generation()
    assert registry.guard.hold(FIRST)
    assert registry.guard.hold(FIRST), "it renews"
    assert not registry.guard.hold(SECOND)
    registry.guard.release(SECOND)
    assert not registry.guard.hold(SECOND)
    assert registry.rollouts.report("spring").watched_by == "node-a:1"
    registry.guard.release(FIRST)
    assert registry.guard.hold(SECOND)
    assert registry.generation() == before, "a lease is no change"


def test_of_many_servers_that_want_the_lease_at_once_one_gets_it(registry: Registry) -> None:
    watches = [Watch(f"{number:032}", f"node:{number}") for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(registry.guard.hold, watches)) == 1
    with_it = [watch for watch in watches if registry.guard.hold(watch)]
    assert len(with_it) == 1
    let_time_pass(registry, LEASE_S + 1)
    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(registry.guard.hold, watches)) == 1


def test_a_dead_servers_lease_expires_and_another_server_kills(registry: Registry) -> None:
    begin(registry, "errors=kill")
    registry.guard.hold(FIRST)
    fail(registry)
    assert not registry.guard.hold(SECOND)
    with pytest.raises(LeaseLost):
        registry.guard.test("spring", SECOND)
    assert registry.rollouts.find("spring").state == "ramping"
    let_time_pass(registry, LEASE_S + 1)
    assert "no server tests the limits" in " ".join(registry.rollouts.report("spring").warnings)
    assert registry.guard.hold(SECOND)
    assert registry.guard.test("spring", SECOND)
    assert registry.audit("acme")[-1].who == "limit at node-b:2"


def test_a_server_that_was_slow_and_lost_its_lease_does_nothing(registry: Registry) -> None:
    begin(registry, "errors=pause")
    fail(registry)
    registry.guard.hold(FIRST)
    let_time_pass(registry, LEASE_S + 1)
    before = (registry.generation(), registry.audit())
    with pytest.raises(LeaseLost):
        registry.guard.test("spring", FIRST)
    registry.guard.hold(SECOND)
    with pytest.raises(LeaseLost):
        registry.guard.test("spring", FIRST)
    assert (registry.generation(), registry.audit()) == before
    assert registry.rollouts.find("spring").state == "ramping"


def test_a_lease_ends_also_after_the_databases_clock_was_set_back(registry: Registry) -> None:
    registry.guard.hold(FIRST)
    let_time_pass(registry, -3600)
    assert registry.guard.hold(SECOND)


@pytest.mark.slow
def test_an_answer_that_is_committed_late_is_something_new_to_test(cluster: Cluster) -> None:
    url = cluster.new_database()
    registry, other = published(url, ["acme"]), Database(url)
    running = begin(registry, "errors=kill")
    with other.log() as slow:
        exposures.expose(slow, failing(running, users=1))
        registry.rollouts.expose(failing(running, users=1, first=1))
        before = registry.guard.mark()
    assert registry.guard.mark() != before
    assert registry.guard.mark() == registry.guard.mark()
    registry.close()
    other.close()


def test_a_person_kills_while_a_dead_server_has_the_lease(registry: Registry) -> None:
    begin(registry, "errors=kill")
    fail(registry)
    registry.guard.hold(FIRST)
    registry.rollouts.kill("spring", by="ann", why="complaints")
    assert registry.guard.test("spring", FIRST) == ()
    assert rows(registry) == ["rollout.kill"]
    assert registry.rollouts.report("spring").decisions == ()


def test_many_servers_that_act_at_once_act_once(registry: Registry) -> None:
    begin(registry, "errors=pause", "slower:2s=warn")
    fail(registry)
    registry.guard.hold(FIRST)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: registry.guard.test("spring", FIRST), range(8)))
    assert sorted(map(len, found)) == [0] * 7 + [2]
    assert rows(registry) == ["rollout.pause"]


# Schedules


def test_a_server_takes_the_steps_of_a_schedule_when_they_are_due(registry: Registry) -> None:
    begin(registry, schedule="1% 1h, 10% 1d, 50%")
    registry.guard.hold(FIRST)
    assert registry.guard.advance("spring", FIRST) is None
    shares = [registry.rollouts.find("spring").share]
    for seconds in (3_601, 3_601, 86_401, 86_401):
        let_time_pass(registry, seconds)
        assert registry.guard.hold(FIRST)
        registry.guard.advance("spring", FIRST)
        shares.append(registry.rollouts.find("spring").share)
    assert shares == [100, 1_000, 1_000, 5_000, 5_000]
    assert rows(registry) == ["rollout.ramp", "rollout.ramp"]
    last = registry.audit("acme")[-1]
    assert (last.who, last.why) == ("schedule at node-a:1", "schedule 1% 1h, 10% 1d, 50%")


def test_a_server_without_the_lease_takes_no_step(registry: Registry) -> None:
    begin(registry, schedule="1% 1h, 50%")
    let_time_pass(registry, 3_601)
    with pytest.raises(LeaseLost):
        registry.guard.advance("spring", FIRST)
    registry.guard.hold(FIRST)
    moved = registry.guard.advance("spring", FIRST)
    assert moved is not None
    assert moved.share == 5_000


def test_a_schedule_survives_in_the_registry_and_a_persons_step_ends_it(registry: Registry) -> None:
    begun = begin(registry, schedule="1% 1h, 50%")
    assert registry.rollouts.find("spring") == begun
    assert registry.snapshot().rollouts["acme"] == begun
    registry.rollouts.pause("spring")
    let_time_pass(registry, 3_601)
    registry.guard.hold(FIRST)
    assert registry.guard.advance("spring", FIRST) is None
    assert registry.rollouts.find("spring").share == 100


def test_a_schedule_ends_when_an_older_version_moves_its_rollout(registry: Registry) -> None:
    begin(registry, schedule="1% 1h, 50%")
    with create_engine(registry.url).begin() as connection:
        connection.execute(text("update rollouts set share = 2000"))
    assert registry.rollouts.find("spring").schedule is None


def test_a_rollout_from_before_there_were_limits_has_none(registry: Registry) -> None:
    begin(registry)
    with create_engine(registry.url).begin() as connection:
        settings = json.loads(connection.execute(text("select settings from rollouts")).scalar_one())
        del settings["limits"]
        connection.execute(text("update rollouts set settings = :s"), {"s": json.dumps(settings)})
    found = registry.rollouts.find("spring")
    assert (found.limits, found.schedule, found.guarded) == ((), None, False)
    registry.guard.hold(FIRST)
    assert registry.guard.test("spring", FIRST) == ()
    assert registry.rollouts.report("spring").warnings == []


def test_an_unknown_limit_is_refused_before_anything_is_stored(registry: Registry) -> None:
    with pytest.raises(EditError, match="expected errors, cut, slower, locality; got 'solved'"):
        begin(registry, "solved=kill")
    assert registry.rollouts.newest_first() == []
