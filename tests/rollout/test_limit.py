"""Limits and ramp schedules as a person writes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rollout.example import NEW, OLD, rollout
from vllm_edit.errors import EditError
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.limit import ACTIONS, MEASURES, Limit, parse_limit
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.schedule import Schedule, Step, parse_schedule

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("errors=kill", Limit("errors", "kill")),
        ("errors+1%=kill", Limit("errors", "kill", 0.01)),
        ("cut + 0.02 = warn", Limit("cut", "warn", 0.02)),
        ("slower:2s=warn", Limit("slower", "warn", seconds=2)),
        ("slower:750ms+5%=pause", Limit("slower", "pause", 0.05, 0.75)),
        ("slower:1.5m=warn", Limit("slower", "warn", seconds=90)),
        ("locality+5%=kill", Limit("locality", "kill", 0.05)),
        ("rating+0.5=pause", Limit("rating", "pause", 0.5)),
    ],
)
def test_a_limit_is_written_as_measure_margin_and_action(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


_TEN_MILLIONTHS = st.integers(0, 10**9).map(lambda number: number / 10**7)


@given(st.sampled_from(("errors", "cut", "solved")), st.sampled_from(ACTIONS), _TEN_MILLIONTHS)
def test_a_limit_is_read_back_from_its_text(name: str, action: str, margin: float) -> None:
    limit = Limit(name, action, margin)  # type: ignore[arg-type]
    assert parse_limit(str(limit)) == limit


@given(_TEN_MILLIONTHS.filter(bool))
def test_a_duration_is_read_back_from_its_text(seconds: float) -> None:
    limit = Limit("slower", "warn", seconds=seconds)
    assert parse_limit(str(limit)) == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a limit like errors=kill"),
        ("errors", "expected a limit like errors=kill"),
        ("errors=stop", "warn, pause or kill; got 'errors=stop'"),
        ("errors+1e-3=kill", "expected a limit like"),
        ("errors-1%=kill", "expected a limit like"),
        ("slower=warn", "needs one; expected a limit like slower:2s=warn"),
        ("errors:2s=warn", "only slower has a duration"),
        ("slower:0s=warn", "a duration of more than 0"),
        ("locality=kill", r"like locality\+5%=kill"),
    ],
)
def test_a_limit_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        parse_limit(text)


@pytest.mark.parametrize(
    ("limits", "metrics", "message"),
    [
        (["sloved=kill"], [Metric("solved")], "expected errors, cut, slower, locality, solved; got 'sloved'"),
        (["errors=kill"], [Metric("errors")], "metric errors has the name of a server's own measure"),
        (["solved+1=kill"], [Metric("solved")], "expected a margin below 1"),
        (["rating+4=kill"], [Metric("rating", 1, 5)], "expected a margin below 4"),
        (["errors=kill", "errors=warn"], [], "limit errors is given twice"),
    ],
)
def test_a_rollout_has_only_limits_that_can_act(limits: list[str], metrics: list[Metric], message: str) -> None:
    with pytest.raises(EditError, match=message):
        rollout(metrics=tuple(metrics), limits=tuple(map(parse_limit, limits)))


def test_two_margins_of_one_measure_are_two_limits() -> None:
    made = rollout(limits=(parse_limit("errors=warn"), parse_limit("errors+2%=kill")))
    assert len(made.limits) == 2


def test_base_as_treatment_has_no_locality_to_lose() -> None:
    with pytest.raises(EditError, match="treatment base has no locality probes"):
        rollout(treatment=Arm("base"), limits=(parse_limit("locality+5%=kill"),))


def test_every_measure_of_servers_is_a_share_whose_lower_values_are_better() -> None:
    for name in MEASURES:
        metric = Limit(name, "warn", 0.5, 1.0 if name == "slower" else None).metric(())
        assert (metric.low, metric.high, metric.better) == (0, 1, "lower")


# Schedules


def test_a_schedule_is_written_as_shares_and_durations() -> None:
    made = parse_schedule("1% 1h, 10 % 1d,50%")
    assert made.steps == (Step(100, 3600), Step(1_000, 86_400), Step(5_000))
    assert str(made) == "1% 1h, 10% 1d, 50%"
    assert parse_schedule("12.5").steps == (Step(1_250),)


_RISING = st.lists(st.integers(0, 10_000), min_size=1, max_size=32, unique=True).map(sorted)


@given(_RISING, st.data())
def test_a_schedule_is_read_back_from_its_text(shares: list[int], data: st.DataObject) -> None:
    durations = [data.draw(st.integers(1, 365 * 86_400)) for _ in shares[1:]]
    made = Schedule(tuple(map(Step, shares, [*durations, None])))
    assert parse_schedule(str(made)) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a share like 10"),
        ("10% 1y, 20%", "expected a share like 10"),
        ("-1", "expected a share like 10"),
        ("10% 1h, 5%", "shares that rise"),
        ("10% 1h, 10%", "shares that rise"),
        ("10%, 20%", "a duration of at most a year at every step but the last"),
        ("10% 1h", "at every step but the last"),
        ("10% 0h, 20%", "at every step but the last"),
        ("10% 2000d, 20%", "at every step but the last"),
        ("101%", "0 to 100 per cent"),
        ("0.001", "at most two decimals"),
    ],
)
def test_a_schedule_that_is_no_ramp_is_refused(text: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        parse_schedule(text)


def test_each_step_lasts_its_time_also_when_it_begins_late() -> None:
    made = rollout().scheduled(parse_schedule("1% 1h, 10% 1d, 50%"), NOW)
    assert (made.state, made.share) == ("ramping", 100)
    assert made.advanced(NOW + timedelta(minutes=59)) == made
    late = NOW + timedelta(hours=30)  # no server ran for a day
    second = made.advanced(late)
    assert second.share == 1_000
    assert second.advanced(late + timedelta(hours=23)) == second, "the second step is not skipped"
    last = second.advanced(late + timedelta(days=1))
    assert last.share == 5_000
    assert last.advanced(late + timedelta(days=999)) == last


@given(_RISING.filter(lambda shares: len(shares) > 1), st.lists(st.integers(0, 5_000), max_size=60))
def test_however_often_a_schedule_is_looked_at_it_rises_step_by_step(shares: list[int], waits: list[int]) -> None:
    steps = tuple(map(Step, shares, [3600] * (len(shares) - 1) + [None]))
    made, now = rollout().scheduled(Schedule(steps), NOW), NOW
    seen = [made.share]
    for wait in waits:
        now += timedelta(seconds=wait)
        made = made.advanced(now)
        if made.share != seen[-1]:
            seen.append(made.share)
    assert seen == shares[: len(seen)]
    assert len(seen) - 1 <= sum(waits) // 3600


def test_a_limit_holds_a_schedule_until_the_next_ramp() -> None:
    later = NOW + timedelta(days=9)
    made = rollout().scheduled(parse_schedule("1% 1h, 10%"), NOW).held("errors=warn")
    assert made.schedule is not None
    assert made.schedule.next_at is None
    assert made.advanced(later) == made
    assert made.held("cut=warn") == made, "the first limit is named"
    assert made.scheduled(parse_schedule("5% 1h, 10%"), NOW).advanced(later).share == 1_000
    assert made.ramped(2).schedule is None


def test_a_person_who_pauses_kills_or_promotes_ends_the_schedule() -> None:
    later = NOW + timedelta(days=9)
    made = rollout().scheduled(parse_schedule("1% 1h, 10%"), NOW)
    for moved in (made.paused(), made.killed(), made.promoted()):
        assert moved.schedule is None
        assert moved.advanced(later) == moved


def test_a_schedule_takes_no_step_after_an_arm_has_expired() -> None:
    end = NOW + timedelta(days=1)
    for side, name in (("control", OLD), ("treatment", NEW)):
        made = rollout(**{side: Arm("weights", name, end)}).scheduled(parse_schedule("1% 1h, 10% 1h, 50%"), NOW)
        moved = made.advanced(end - timedelta(seconds=1))
        assert moved.share == 1_000
        assert moved.advanced(end + timedelta(days=1)) == moved
