"""Rollouts in the registry: steps with their audit rows, publications beside them, exposures and outcomes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import create_engine, text

from tests.rollout.example import NEW, OLD, THIRD, published, rollout
from vllm_edit.errors import EditError, NotFound
from vllm_edit.registry import migrations
from vllm_edit.registry.registry import Registry
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.assignment import assign
from vllm_edit.rollout.decision import TenantState, decide
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.outcomes import Exposure
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.sticky import Stickiness, StickyKey

NOW = datetime.now(UTC)
METRICS = (Metric("solved"), Metric("rating", 1, 5))


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    made = published(registry_url)
    yield made
    made.close()


def _served(registry: Registry, tenant: str = "acme") -> tuple[str | None, str]:
    """The patch and the reason with which a server would answer a request of user `ann`."""
    snapshot = registry.snapshot()
    state = TenantState(tenant, snapshot.active(tenant, NOW), snapshot.rollouts.get(tenant))
    made = decide(state, {"x-user-id": "ann"}, {}, NOW)
    return made.adapter, made.reason


def test_a_rollout_is_stored_as_it_was_made(registry: Registry) -> None:
    made = rollout(
        treatment=Arm("ike", OLD),
        overrides={"zoë": "treatment"},
        sticky=Stickiness(("api-key", "user-header"), user_header="x-who"),
        metrics=METRICS,
        alpha=0.01,
        split=1_234,
    )
    before = datetime.now(UTC)
    assert registry.rollouts.create(made) == made
    assert registry.rollouts.find("spring") == made
    [entry] = registry.rollouts.newest_first("acme")
    assert entry.rollout == made
    assert before <= entry.created_at <= datetime.now(UTC)
    assert registry.rollouts.newest_first("globex") == []
    with pytest.raises(NotFound, match="no rollout 'sprong'; nearest: spring"):
        registry.rollouts.find("sprong")


@pytest.mark.parametrize("name", ["spring\0", "Spring", "s" * 64, ""])
def test_a_name_that_no_rollout_can_have_is_not_found_in_any_database(registry: Registry, name: str) -> None:
    registry.rollouts.create(rollout())
    for read in (registry.rollouts.find, registry.rollouts.report, registry.rollouts.kill):
        with pytest.raises(NotFound, match="no rollout"):
            read(name)


def test_signatures_are_read_before_the_change_so_that_no_other_change_waits(registry_url: str) -> None:
    def admit(name: str) -> None:
        checked.append(name)
        other.create_tenant(f"tenant{len(checked)}")  # would wait for the lock of the change, and fail

    checked: list[str] = []
    other = published(registry_url)
    registry = Registry(registry_url, admit=admit)
    registry.publish("acme", NEW)
    registry.rollouts.create(rollout(control=Arm("weights", NEW), treatment=Arm("weights", OLD)))
    assert checked == [NEW, NEW, OLD]
    for made in (registry, other):
        made.close()


def test_every_step_is_a_change_with_its_row_of_the_audit(registry: Registry) -> None:
    steps = registry.rollouts
    steps.create(rollout(), by="ann", why="try it")
    before = registry.generation()
    steps.ramp("spring", 10, by="ann")
    steps.pause("spring", by="ann")
    steps.ramp("spring", 20, by="ann")
    steps.promote("spring", by="ann")
    steps.kill("spring", by="bob", why="complaints")
    assert registry.generation() == before + 5
    steps.kill("spring")
    rows = [row for row in registry.audit("acme") if row.what.startswith("rollout.")]
    assert [row.what.removeprefix("rollout.") for row in rows] == [
        "create", "ramp", "pause", "ramp", "promote", "kill",
    ]  # fmt: skip
    assert (rows[-1].who, rows[-1].why) == ("bob", "complaints")
    assert '"promoted"' in rows[-1].old
    assert '"killed"' in rows[-1].new
    with pytest.raises(EditError, match="cannot ramp rollout 'spring': it is killed"):
        steps.ramp("spring", 5)
    assert [row for row in registry.audit("acme") if row.what.startswith("rollout.")] == rows


def test_it_decides_from_its_first_ramp_and_stays_killed_after_a_kill(registry: Registry) -> None:
    steps = registry.rollouts
    steps.create(rollout(overrides={"ann": "treatment"}))
    assert _served(registry) == (OLD, "TARGETING_MATCH")
    steps.ramp("spring", 0)
    assert _served(registry) == (NEW, "TARGETING_MATCH")
    steps.kill("spring")
    assert _served(registry) == (OLD, "DISABLED")
    assert _served(registry, "globex") == (OLD, "TARGETING_MATCH")
    steps.create(rollout(name="summer", treatment=Arm("weights", THIRD)))
    assert _served(registry) == (OLD, "DISABLED"), "made is not started"
    steps.ramp("summer", 0)
    assert steps.find("spring").closed
    steps.promote("summer")
    assert _served(registry) == (THIRD, "STATIC")


def test_a_tenant_has_one_open_rollout(registry: Registry) -> None:
    registry.rollouts.create(rollout())
    with pytest.raises(EditError, match=r"has rollout 'spring' \(created\) already; promote or kill it first"):
        registry.rollouts.create(rollout(name="summer"))
    registry.rollouts.create(rollout(name="summer", tenant="globex"))
    with pytest.raises(NotFound, match="no tenant"):
        registry.rollouts.create(rollout(name="autumn", tenant="initech"))
    registry.rollouts.kill("spring")
    with pytest.raises(EditError, match="there is a rollout 'spring' already"):
        registry.rollouts.create(rollout())


def test_a_publication_waits_for_a_running_rollout_and_replaces_an_ended_one(registry: Registry) -> None:
    steps = registry.rollouts
    steps.create(rollout())
    steps.ramp("spring", 10)
    with pytest.raises(EditError, match="rollout 'spring' of tenant 'acme' is ramping; promote or kill it first"):
        registry.publish("acme", THIRD)
    steps.promote("spring")
    assert _served(registry) == (NEW, "STATIC")
    registry.publish("acme", OLD)  # published all along, but not served
    assert _served(registry) == (OLD, "TARGETING_MATCH")
    assert registry.audit("acme")[-1].what == "tenant.publish"
    assert '"closes":["spring"]' in registry.audit("acme")[-1].new
    assert steps.find("spring").closed
    with pytest.raises(EditError, match="a later publication or rollback replaced it"):
        steps.ramp("spring", 10)
    steps.create(rollout(name="summer"))
    registry.publish("acme", THIRD)
    assert steps.find("summer").closed, "its control is not what was published since"


def test_a_rollback_takes_back_the_rollout_first(registry: Registry) -> None:
    registry.publish("acme", THIRD)
    steps = registry.rollouts
    steps.create(rollout(control=Arm("weights", THIRD), overrides={"ann": "treatment"}))
    steps.ramp("spring", 10)
    assert _served(registry) == (NEW, "TARGETING_MATCH")
    assert registry.rollback("acme") == THIRD
    assert _served(registry) == (THIRD, "TARGETING_MATCH")
    assert steps.find("spring").closed
    assert registry.rollback("acme") == OLD

    steps.create(rollout(name="summer", treatment=Arm("weights", THIRD)))
    steps.ramp("summer", 10)
    assert registry.rollback("acme", to=OLD) == OLD
    assert _served(registry) == (OLD, "TARGETING_MATCH")


def test_an_arm_must_have_passed_its_gate_and_stays_while_it_is_needed(registry: Registry) -> None:
    steps = registry.rollouts
    registry.set_status(NEW, "rejected", "locality 0.62")
    with pytest.raises(EditError, match=r"locality 0\.62"):
        steps.create(rollout())
    with pytest.raises(EditError, match="needs a name"):
        steps.create(rollout(), override="they insist")
    for blank in ({"override": " ", "by": "ann", "why": "new"}, {"override": "they insist", "by": " "}):
        with pytest.raises(EditError, match="got only spaces"):
            steps.create(rollout(), **blank)
    steps.create(rollout(), override="they insist", by="ann")
    assert "they insist" in registry.audit("acme")[-1].new
    assert not registry.retired.add(registry.patch(NEW))
    assert NEW in registry.published()
    steps.kill("spring")
    assert registry.retired.add(registry.patch(NEW))
    with pytest.raises(NotFound, match="being removed by gc"):
        steps.create(rollout(name="summer"))


def test_a_tenant_is_served_what_its_rollout_decides(registry: Registry) -> None:
    steps = registry.rollouts

    def served_now() -> tuple[str | None, str, str | None, str | None]:
        tenant = registry.tenants()[0]
        assert (tenant.mode, tenant.active) == ((arm := registry.served("acme")).mode, arm.name)
        return tenant.active, tenant.mode, tenant.rollout, tenant.treatment

    steps.create(rollout(control=Arm("base"), treatment=Arm("ike", NEW)))
    assert served_now() == (OLD, "weights", None, None), "nobody is served by it before its first ramp"
    steps.ramp("spring", 20)
    assert served_now() == (None, "base", "spring", f"{NEW}:ike")
    assert registry.tenants()[0].treated == 10.0
    steps.promote("spring")
    assert served_now() == (NEW, "ike", "spring", None)
    assert registry.active("acme") == OLD, "promoting publishes nothing"
    steps.kill("spring")
    assert served_now() == (None, "base", "spring", None)
    assert registry.tenants()[1].active == OLD
    with pytest.raises(NotFound, match="no tenant"):
        registry.served("nobody")


def test_an_arm_that_is_served_already_needs_no_second_override(registry: Registry) -> None:
    steps, end = registry.rollouts, NOW + timedelta(days=1)
    registry.add_patch(NEW, valid_until=end)
    registry.set_status(NEW, "rejected", "locality 0.62")
    steps.create(rollout(), override="they insist", by="ann")
    steps.ramp("spring", 1)
    steps.promote("spring")
    made = steps.create(rollout(name="summer", control=registry.served("acme"), treatment=Arm("weights", THIRD)))
    assert made.control == Arm("weights", NEW, end)


def test_a_default_control_is_what_is_served_when_the_rollout_is_created(registry: Registry) -> None:
    drafted = rollout(control=registry.served("acme"), treatment=Arm("weights", THIRD))
    registry.publish("acme", NEW)
    made = registry.rollouts.create(drafted, control_served=True)
    assert made.control == registry.rollouts.find("spring").control == Arm("weights", NEW)
    chosen = replace(drafted, name="summer", tenant="globex", control=Arm("weights", NEW))
    assert registry.rollouts.create(chosen).control == chosen.control, "a person may choose another"


def test_a_rollout_to_what_was_published_meanwhile_is_refused(registry: Registry) -> None:
    drafted = rollout(control=registry.served("acme"), treatment=Arm("weights", THIRD))
    registry.publish("acme", THIRD)
    with pytest.raises(EditError, match="control and treatment are both capital@c"):
        registry.rollouts.create(drafted, control_served=True)
    assert registry.rollouts.newest_first() == []


def test_a_kill_closes_the_rollout_that_was_made_to_follow_the_killed_one(registry: Registry) -> None:
    steps = registry.rollouts
    steps.create(rollout())
    steps.ramp("spring", 1)
    steps.promote("spring")
    steps.create(rollout(name="summer", control=registry.served("acme"), treatment=Arm("weights", THIRD)))
    steps.kill("spring")
    assert '"closes":["summer"]' in registry.audit("acme")[-1].new
    with pytest.raises(EditError, match="replaced it"):
        steps.ramp("summer", 1)
    assert registry.served("acme").name == OLD, "nobody falls back to what was killed"


def test_an_arm_ends_with_its_patch(registry: Registry) -> None:
    end = NOW + timedelta(days=1)
    registry.add_patch(NEW, valid_until=end)
    made = registry.rollouts.create(rollout())
    assert (made.control.valid_until, made.treatment.valid_until) == (None, end)
    assert registry.rollouts.find("spring") == made
    registry.rollouts.kill("spring")
    registry.add_patch(NEW, valid_until=NOW - timedelta(days=1))
    with pytest.raises(EditError, match="would have ended"):
        registry.rollouts.create(rollout(name="summer"))


def test_an_expired_arm_is_removed(registry: Registry) -> None:
    registry.add_patch(NEW, valid_until=datetime.now(UTC) + timedelta(seconds=0.5))
    made = registry.rollouts.create(rollout())
    registry.rollouts.ramp("spring", 1)
    registry.rollouts.promote("spring")
    assert not registry.retired.add(registry.patch(NEW)), "it is served"
    while not made.treatment.ended(datetime.now(UTC)):
        time.sleep(0.05)
    assert registry.published() == {OLD}
    assert registry.retired.add(registry.patch(NEW))
    assert registry.served("acme").name == OLD


def test_a_report_warns_of_an_arm_that_expired(registry: Registry) -> None:
    end = datetime.now(UTC) + timedelta(seconds=0.5)
    registry.add_patch(NEW, valid_until=end)
    registry.rollouts.create(rollout())
    registry.rollouts.ramp("spring", 100)
    while datetime.now(UTC) < end:
        time.sleep(0.05)
    [warning] = registry.rollouts.report("spring").warnings
    assert warning.startswith(f"treatment {Arm('weights', NEW).short} expired at {end:%F %T} UTC")


# Exposures and outcomes


def _id(i: int) -> str:
    return f"edit-{i:032x}"


def _exposed(registry: Registry, users: int = 40, requests: int = 80, percent: float = 100) -> Rollout:
    """A running rollout of acme with requests of so many users in turn."""
    registry.rollouts.create(rollout(metrics=METRICS))
    running = registry.rollouts.ramp("spring", percent)
    registry.rollouts.expose(
        Exposure(
            _id(i),
            "acme",
            assign(running, StickyKey("user", f"user{i % users}")),
            NOW + timedelta(seconds=i),
            failed=i == 0,
            prompt_tokens=10,
            completion_tokens=i,
            seconds=i / 100,
        )
        for i in range(requests)
    )
    return running


def test_first_answers_have_more_numbers_than_32_bits_hold(registry_url: str) -> None:
    """On PostgreSQL every answer uses one up, and after the last one no server could log answers any more."""
    engine = create_engine(registry_url)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0010")
        if connection.dialect.name == "postgresql":
            connection.execute(text("select setval('first_answers_number_seq', 2147483646)"))
    registry = published(registry_url)
    _exposed(registry, users=3, requests=9)
    found = registry.rollouts.report("spring")
    assert sum(traffic.requests for traffic in found.traffic.values()) == 9
    with engine.connect() as connection:
        seconds = connection.execute(text("select seconds from first_answers order by number")).scalars().all()
    assert sorted(seconds) == [0.0, 0.01, 0.02]
    registry.close()


def test_a_report_counts_the_compared_questions(registry: Registry) -> None:
    running = _exposed(registry, percent=50)
    found = registry.rollouts.report("spring")
    on = [(i, assign(running, StickyKey("user", f"user{i % 40}"))) for i in range(80)]
    for side in ("control", "treatment"):
        own = [i for i, assignment in on if assignment.compared and assignment.side == side]
        traffic = found.traffic[side]
        assert (traffic.requests, traffic.units) == (len(own), len(own) // 2)
        assert 0 < len(own) < 80
        assert (traffic.prompt_tokens, traffic.completion_tokens) == (10 * len(own), sum(own))
        assert traffic.failed == (0 in own)
        assert sorted(traffic.seconds) == [i / 100 for i in own]


def test_outcomes_are_compared_by_the_first_of_each_user(registry: Registry) -> None:
    running = _exposed(registry)
    sides = [assign(running, StickyKey("user", f"user{i}")).side for i in range(40)]
    for i in range(80):  # each user first reports its side's value, then the contrary
        does = (sides[i % 40] == "treatment") == (i < 40)
        assert registry.rollouts.record("acme", _id(i), "solved", does)
    registry.rollouts.record("acme", _id(3), "rating", 4)
    solved, rating = registry.rollouts.report("spring").comparisons
    treated = sides.count("treatment")
    assert solved.outcomes == {"treatment": 2 * treated, "control": 80 - 2 * treated}
    assert (solved.arms["treatment"].n, solved.arms["treatment"].mean) == (treated, 1.0)
    assert (solved.arms["control"].n, solved.arms["control"].mean) == (40 - treated, 0.0)
    assert solved.verdict == "better"
    assert sum(rating.outcomes.values()) == 1


def test_an_outcome_counts_once_for_a_known_answer_of_the_same_tenant(registry: Registry) -> None:
    _exposed(registry)
    record, before = registry.rollouts.record, registry.generation()
    assert record("acme", _id(1), "solved", True)
    assert not record("acme", _id(1), "solved", 1.0), "a client may repeat itself"
    with pytest.raises(EditError, match=r"solved of answer edit-0+1 is 1 already"):
        record("acme", _id(1), "solved", 0)
    assert record("acme", _id(1), "rating", 5)
    for tenant, id in (("globex", _id(1)), ("acme", _id(99)), ("acme", "edit-\x00"), ("acme", "'; --"), ("acme", "")):
        with pytest.raises(NotFound, match=r"^no rollout decided an answer "):
            record(tenant, id, "solved", 1)
    with pytest.raises(NotFound, match="has no metric 'sloved'; it has solved, rating"):
        record("acme", _id(2), "sloved", 1)
    for value in (2, -1, float("nan")):
        with pytest.raises(EditError, match=r"solved has values in 0\.\.1"):
            record("acme", _id(2), "solved", value)
    registry.rollouts.kill("spring")
    assert record("acme", _id(3), "solved", 1), "what was answered before may still turn out"
    assert registry.generation() == before + 1, "servers have nothing to read again because of outcomes"


def test_many_writers_of_one_outcome_leave_one(registry: Registry) -> None:
    _exposed(registry)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: registry.rollouts.record("acme", _id(1), "solved", 1.0), range(16)))
    assert sorted(done) == [False] * 15 + [True]


def test_answers_that_a_rollout_did_not_split_may_be_rated_but_are_not_compared(registry: Registry) -> None:
    running = _exposed(registry, percent=0)
    assert not assign(running, StickyKey("user", "user0")).compared
    assert registry.rollouts.record("acme", _id(0), "solved", 1)
    found = registry.rollouts.report("spring")
    assert found.comparisons[0].arms["control"].n == found.traffic["control"].requests == 0
