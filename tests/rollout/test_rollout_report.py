"""The report of a rollout: what became of each limit, and arms that expired."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.rollout.example import NEW, OLD, rollout
from vllm_edit.rollout.arm import Arm, Side
from vllm_edit.rollout.decided import Decision
from vllm_edit.rollout.guardrails import Evidence, judge
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.outcomes import Observed
from vllm_edit.rollout.rollout_report import report


def test_a_limit_holds_is_exceeded_or_was_acted_on_and_the_latest_action_counts() -> None:
    limits = (parse_limit("errors=kill"), parse_limit("solved+0.5=pause"))
    made = rollout(12.5, metrics=(Metric("solved", 0, 1),), limits=limits)
    observed = [Observed("treatment" if number % 2 else "control", float(1 - number % 2)) for number in range(200)]
    evidence = Evidence(outcomes={"solved": observed})
    found = report(made, {}, evidence)
    holds, exceeded = found.limits
    assert [found.state_of(holds), found.state_of(exceeded)] == ["holds", "exceeded"]
    times = [datetime(2026, 5, 4, hour, tzinfo=UTC) for hour in (7, 8)]
    (_, result) = judge(made, evidence)
    acted = replace(found, decisions=tuple(Decision(result, at, "node-a:1") for at in times))
    assert [acted.state_of(holds), acted.state_of(exceeded)] == ["holds", "acted"]
    decision = acted.decision_on(exceeded)
    assert decision is not None
    assert decision.at == times[1]
    assert acted.decision_on(holds) is None


@pytest.mark.parametrize("side", ["control", "treatment"])
def test_an_expired_arm_is_a_warning_with_its_name_and_time(side: Side) -> None:
    end = datetime(2026, 5, 4, 7, tzinfo=UTC)
    arm = Arm("weights", {"control": OLD, "treatment": NEW}[side], end)
    made = rollout(50, **{side: arm})
    assert report(made, {}, Evidence(), now=end - timedelta(seconds=1)).warnings == []
    [warning] = report(made, {}, Evidence(), now=end).warnings
    assert warning.startswith(f"{side} {arm.short} expired at 2026-05-04 07:00:00 UTC")
    assert report(made.killed(), {}, Evidence(), now=end).warnings == []
    assert report(rollout(**{side: arm}), {}, Evidence(), now=end).warnings == [], "it serves nobody yet"
