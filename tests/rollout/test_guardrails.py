"""Tests of limits: what counts as worse, the margin, several limits, and the rate of false alarms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.guardrails import Simulation, first_looks
from tests.rollout.example import rollout
from vllm_edit.rollout.arm import Side
from vllm_edit.rollout.guardrails import Evidence, LimitResult, judge, strictest
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.outcomes import FirstAnswer, Observed

SIDES: tuple[Side, Side] = ("control", "treatment")


def _answers(n: int, *, control: float = 0.0, treatment: float = 0.0, field: str = "failed") -> list[FirstAnswer]:
    """`n` answers of each side in turn; `field` is true with these rates, or the seconds are 3 instead of 1."""
    rng = np.random.default_rng(0)
    found = []
    for drawn in rng.random((n, 2)):
        for side, rate, value in zip(SIDES, (control, treatment), drawn, strict=True):
            hit = bool(value < rate)
            seconds = 3.0 if hit and field == "seconds" else 1.0
            found.append(FirstAnswer(side, hit and field == "failed", hit and field == "cut", seconds))
    return found


def _judged(limits: Sequence[str], evidence: Evidence, **changes: object) -> tuple[LimitResult, ...]:
    return judge(rollout(limits=tuple(map(parse_limit, limits)), **changes), evidence)


@pytest.mark.parametrize(
    ("limit", "field"), [("errors=kill", "failed"), ("cut=kill", "cut"), ("slower:2s=kill", "seconds")]
)
def test_a_measure_of_servers_is_exceeded_only_where_treatment_is_worse(limit: str, field: str) -> None:
    [worse] = _judged([limit], Evidence(_answers(400, control=0.1, treatment=0.5, field=field)))
    assert worse.exceeded
    assert worse.excess.low is not None
    assert 0 < worse.excess.low < 0.4
    assert worse.control is not None
    assert worse.control.mean == pytest.approx(0.1, abs=0.05)
    assert worse.treatment.mean == pytest.approx(0.5, abs=0.05)
    [better] = _judged([limit], Evidence(_answers(400, control=0.5, treatment=0.1, field=field)))
    assert not better.exceeded
    [other] = _judged([limit], Evidence(_answers(400, treatment=0.5, field="cut" if field != "cut" else "failed")))
    assert not other.exceeded, "another measure is worse"


def test_a_failed_answer_is_slower_than_any_limit() -> None:
    failing = _answers(400, treatment=0.5)
    assert all(answer.seconds == 1.0 for answer in failing)
    [result] = _judged(["slower:1m=kill"], Evidence(failing))
    assert result.exceeded
    refused = FirstAnswer("treatment", failed=True, cut=False, seconds=None)
    assert refused.slower(60.0)
    assert not FirstAnswer("treatment", failed=False, cut=False, seconds=60.0).slower(60.0)


@pytest.mark.parametrize(("better", "rates"), [("higher", (0.6, 0.2)), ("lower", (0.2, 0.6))])
def test_a_metric_of_clients_knows_which_way_is_worse(better: str, rates: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)

    def exceeded(control: float, treatment: float) -> bool:
        observed = [
            Observed(side, float(value < rate))
            for row in rng.random((300, 2))
            for side, rate, value in zip(SIDES, (control, treatment), row, strict=True)
        ]
        metrics = (Metric("solved", better=better),)  # type: ignore[arg-type]
        [result] = _judged(["solved=kill"], Evidence(outcomes={"solved": observed}), metrics=metrics)
        return result.exceeded

    assert exceeded(*rates)
    assert not exceeded(*reversed(rates))


def test_a_margin_is_what_treatment_may_be_worse_by() -> None:
    evidence = Evidence(_answers(2_000, control=0.1, treatment=0.3))
    within, beyond = _judged(["errors+25%=kill", "errors+10%=kill"], evidence)
    assert (within.exceeded, beyond.exceeded) == (False, True)
    [alone] = _judged(["errors=kill"], evidence)
    assert alone.exceeded_at is not None
    assert beyond.exceeded_at is not None
    assert alone.exceeded_at < beyond.exceeded_at


def test_locality_is_compared_with_the_base_and_not_with_control() -> None:
    rng = np.random.default_rng(0)
    for rate, exceeded in ((0.02, False), (0.3, True)):
        [result] = _judged(["locality+5%=kill"], Evidence(canaries=[bool(x < rate) for x in rng.random(300)]))
        assert result.exceeded == exceeded
        assert result.control is None
        assert result.treatment.n == 300


def test_several_limits_share_the_rollouts_alpha() -> None:
    results = _judged(["errors=kill", "cut=warn", "slower:1s=pause", "locality+5%=kill"], Evidence(), alpha=0.04)
    assert [result.alpha for result in results] == [0.01] * 4
    assert not any(result.exceeded for result in results)
    assert strictest(results) == "kill"
    assert strictest(results[1:3]) == "pause"


def test_a_limit_once_exceeded_stays_exceeded() -> None:
    bad, good = _answers(300, treatment=0.5), _answers(3_000, control=0.5)
    [first] = _judged(["errors=kill"], Evidence(bad))
    [later] = _judged(["errors=kill"], Evidence(bad + good))
    assert first.exceeded_at == later.exceeded_at is not None


@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_a_harmless_treatment_is_hardly_ever_stopped(rate: float) -> None:
    """3,000 rollouts of equal arms, three limits each, looked at after every user."""
    simulation = Simulation(runs=3_000, users=800, limits=3, control=rate, treatment=rate, alpha=0.05)
    stopped = np.isfinite(first_looks(simulation, seed=1))
    assert stopped.mean() <= 0.05


@pytest.mark.parametrize("split", [5_000, 3_000, 6_000])
def test_an_incident_that_both_arms_share_exceeds_no_limit(split: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        answers = [
            FirstAnswer(
                "treatment" if treated < split else "control", bool(drawn < 0.02) or 2_000 <= i < 2_200, False, 1
            )
            for i, (treated, drawn) in enumerate(zip(rng.integers(0, 10_000, 4_000), rng.random(4_000), strict=True))
        ]
        [result] = _judged(["errors=kill"], Evidence(answers), split=split)
        assert not result.exceeded


def test_the_simulation_notices_a_test_that_looks_too_often() -> None:
    """The check above can fail: at many times the level, more rollouts are stopped than 5 %."""
    simulation = Simulation(runs=500, users=800, limits=3, control=0.5, treatment=0.5, alpha=0.05)
    loose = np.isfinite(first_looks(simulation, seed=1, level=0.49))
    assert loose.mean() > 0.05


def test_the_simulation_asks_the_function_that_servers_ask() -> None:
    """One simulated rollout, tested by `judge` on its users in order, is stopped at the same user."""
    simulation = Simulation(runs=1, users=600, limits=1, control=0.1, treatment=0.5, alpha=0.05)
    [look] = first_looks(simulation, seed=3)
    treated, [failed] = simulation.drawn(3)
    answers = [
        FirstAnswer("treatment" if on_treatment else "control", bool(hit), False, 1.0)
        for on_treatment, hit in zip(treated[0], failed[0], strict=True)
    ]
    [result] = _judged(["errors=kill"], Evidence(answers))
    assert result.exceeded_at == look


def test_a_worse_treatment_is_stopped_the_sooner_the_worse_it_is() -> None:
    small, large = (
        np.median(first_looks(Simulation(200, 6_000, 1, 0.02, treatment, 0.05), seed=2)) for treatment in (0.08, 0.3)
    )
    assert large < small < 6_000
