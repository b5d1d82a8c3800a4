"""A rollout's states, and invalid rollouts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from tests.rollout.example import NEW, OLD, rollout
from vllm_edit.errors import EditError, NotFound
from vllm_edit.rollout.arm import Arm, split_reference
from vllm_edit.rollout.buckets import buckets_of
from vllm_edit.rollout.metric import Metric, parse_metric
from vllm_edit.rollout.outcomes import metric_of
from vllm_edit.rollout.rollout import Rollout

DO: dict[str, Callable[[Rollout], Rollout]] = {
    "ramp": lambda one: one.ramped(20),
    "pause": Rollout.paused,
    "kill": Rollout.killed,
    "promote": Rollout.promoted,
}
IN: dict[str, Callable[[], Rollout]] = {
    "created": rollout,
    "ramping": lambda: rollout(10),
    "paused": lambda: rollout(10).paused(),
    "killed": lambda: rollout(10).killed(),
    "promoted": lambda: rollout(10).promoted(),
}
LEADS_TO = {
    ("created", "ramp"): "ramping",
    ("created", "kill"): "killed",
    ("ramping", "ramp"): "ramping",
    ("ramping", "pause"): "paused",
    ("ramping", "kill"): "killed",
    ("ramping", "promote"): "promoted",
    ("paused", "ramp"): "ramping",
    ("paused", "kill"): "killed",
    ("paused", "promote"): "promoted",
    ("promoted", "kill"): "killed",
    ("killed", "kill"): "killed",
}


@pytest.mark.parametrize(("state", "verb"), product(IN, DO))
def test_every_step_is_taken_or_refused_in_one_line(state: str, verb: str) -> None:
    before = IN[state]()
    assert before.state == state
    expected = LEADS_TO.get((state, verb))
    if expected is None:
        with pytest.raises(EditError, match=f"cannot {verb} rollout 'spring': it is {state}; ") as refused:
            DO[verb](before)
        assert "\n" not in str(refused.value)
    else:
        after = DO[verb](before)
        assert after.state == expected
        assert after.share == (2_000 if verb == "ramp" else before.share)


def test_a_closed_rollout_stays_as_it_is_but_can_be_killed_twice() -> None:
    with pytest.raises(EditError, match="it is killed; make a new one"):
        rollout(10).killed().promoted()
    closed = rollout(10).promoted().ended()
    assert not closed.governs
    for verb in DO:
        with pytest.raises(EditError, match="a later publication or rollback replaced it; make a new one"):
            DO[verb](closed)
    never_started = rollout().killed()
    assert never_started.closed, "it served nobody, so it must not begin to"
    assert never_started.killed() == never_started


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Spring:1"}, "name: expected lower-case"),
        ({"salt": "a:b"}, "salt: expected"),
        ({"split": 0}, "split: expected more than 0"),
        ({"split": 10_000}, "nothing to compare"),
        ({"share": 10_001}, "share: expected 0 to 10000"),
        ({"alpha": 0.0}, "alpha: expected"),
        ({"state": "done"}, "state: expected one of"),
        ({"overrides": {"ann": "left"}}, "override of 'ann': expected control or treatment; got 'left'"),
        ({"metrics": (Metric("solved"), Metric("solved"))}, "metric solved is given twice"),
        ({"treatment": Arm("weights", OLD)}, "are both"),
        ({"tenant": "../acme"}, "tenant's name"),
    ],
)
def test_an_impossible_rollout_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=message):
        rollout(**changes)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(EditError) as refused:
        rollout(split=0, alpha=2.0, salt="")
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize("percent", [-1, 100.5, 0.001, float("nan"), float("inf")])
def test_a_percentage_that_buckets_cannot_hold_is_refused(percent: float) -> None:
    with pytest.raises(EditError, match="0 to 100 per cent with at most two decimals"):
        buckets_of(percent)


def test_percentages_become_buckets() -> None:
    assert [buckets_of(percent) for percent in (0, 0.01, 0.07, 12.5, 33.33, 99.99, 100)] == [
        0, 1, 7, 1_250, 3_333, 9_999, 10_000,
    ]  # fmt: skip


def test_arms_are_written_as_a_models_name_is() -> None:
    assert split_reference("capital@4f1c:ike") == ("capital@4f1c", "ike")
    assert split_reference("capital") == ("capital", "weights")
    assert split_reference("base") == (None, "base")
    assert [str(Arm("ike", NEW)), str(Arm("weights", NEW)), str(Arm("base"))] == [f"{NEW}:ike", NEW, "base"]
    for text in ("", ":ike", "capital:", "capital:base", "capital:fast"):
        with pytest.raises(EditError, match="expected an arm like"):
            split_reference(text)
    for mode, name in (("weights", None), ("base", NEW)):
        with pytest.raises(EditError, match="only mode base has none"):
            Arm(mode, name)  # type: ignore[arg-type]


def test_metrics_are_read_and_hold_their_range() -> None:
    assert parse_metric("solved") == Metric("solved", 0, 1, "higher")
    assert parse_metric("rating:1..5") == Metric("rating", 1, 5)
    assert parse_metric("wait:0..60.5:lower") == Metric("wait", 0, 60.5, "lower")
    assert parse_metric("change:-1..1").low == -1
    for text in ("", "Solved", "rating:5..1", "rating:1..", "rating:up", "a b"):
        with pytest.raises(EditError):
            parse_metric(text)
    rating = parse_metric("rating:1..5")
    assert rating.check(5) == 5.0
    for value in (0.9, 5.1, float("nan"), float("inf")):
        with pytest.raises(EditError, match=r"has values in 1\.\.5"):
            rating.check(value)


def test_an_outcome_of_no_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(EditError, match="has no metrics; they are given"):
        metric_of(rollout(), "solved")
    with pytest.raises(NotFound, match="nearest: solved"):
        metric_of(rollout(metrics=(Metric("solved"),)), "sovled")
    assert metric_of(rollout(metrics=(Metric("solved"),)), "solved") == Metric("solved")
