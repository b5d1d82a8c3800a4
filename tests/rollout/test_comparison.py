"""Treatment against control from recorded outcomes: verdicts, reports, pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.rollout.example import rollout
from vllm_edit.errors import EditError
from vllm_edit.rollout.arm import Side
from vllm_edit.rollout.comparison import compare
from vllm_edit.rollout.guardrails import Evidence
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.outcomes import Observed, Traffic
from vllm_edit.rollout.picture import draw
from vllm_edit.rollout.rollout_report import RolloutReport, report

SOLVED = Metric("solved")


def _outcomes(n: int, control: float, treatment: float, seed: int = 0, split: float = 0.5) -> list[Observed]:
    """`n` units' outcomes of 0 or 1 with these rates, in the order of a `split` drawn by chance."""
    rng = np.random.default_rng(seed)
    found = []
    for treated, drawn in zip(rng.random(n) < split, rng.random(n), strict=True):
        side: Side = "treatment" if treated else "control"
        found.append(Observed(side, float(drawn < (treatment if treated else control))))
    return found


@pytest.mark.parametrize(
    ("control", "treatment", "better", "verdict"),
    [
        (0.4, 0.6, "higher", "better"),
        (0.6, 0.4, "higher", "worse"),
        (0.4, 0.6, "lower", "worse"),
        (0.6, 0.4, "lower", "better"),
        (0.5, 0.5, "higher", "open"),
    ],
)
def test_a_verdict_knows_which_way_is_better(control: float, treatment: float, better: str, verdict: str) -> None:
    metric = Metric("solved", better=better)  # type: ignore[arg-type]
    found = compare(metric, _outcomes(2_000, control, treatment), 5_000, 0.05)
    assert found.verdict == verdict
    assert (found.decided_at is None) == (verdict == "open")
    assert found.difference.low is not None
    assert found.difference.high is not None
    assert found.difference.low <= treatment - control <= found.difference.high
    for side, rate in (("control", control), ("treatment", treatment)):
        arm = found.arms[side]  # type: ignore[index]
        assert arm.low is not None
        assert arm.high is not None
        assert arm.low <= rate <= arm.high


@pytest.mark.parametrize("split", [1_000, 3_000, 9_000])
def test_every_user_counts_once_at_every_split(split: int) -> None:
    outcomes = _outcomes(20_000, 0.4, 0.5, split=split / 10_000)
    found = compare(SOLVED, outcomes, split, 0.05)
    assert found.difference.n == len(outcomes) == found.arms["control"].n + found.arms["treatment"].n
    assert all(len(part) == len(outcomes) for part in found.path)
    assert found.verdict == "better"
    assert found.decided_at is not None
    assert found.path[1][found.decided_at - 1] > 0 >= found.path[1][found.decided_at - 2]
    assert found.difference.low is not None
    assert found.difference.high is not None
    assert found.difference.low <= 0.1 <= found.difference.high


@pytest.mark.parametrize("split", [5_000, 3_000, 6_000])
def test_an_incident_that_both_arms_share_gives_no_verdict(split: int) -> None:
    """All of 200 users in a row fail, on both arms; before and after that hardly anyone does."""
    for seed in range(5):
        before, incident, after = (
            _outcomes(n, rate, rate, seed + 10 * part, split / 10_000)
            for part, (n, rate) in enumerate(((2_000, 0.02), (200, 1.0), (1_800, 0.02)))
        )
        assert compare(Metric("failed"), [*before, *incident, *after], split, 0.05).verdict == "open"


def test_a_verdict_once_reached_stays() -> None:
    outcomes = _outcomes(2_000, 0.3, 0.6)
    first = compare(SOLVED, outcomes, 5_000, 0.05)
    more = compare(SOLVED, outcomes + _outcomes(20_000, 0.5, 0.4, seed=1), 5_000, 0.05)
    assert (more.verdict, more.decided_at) == (first.verdict, first.decided_at) == ("better", first.decided_at)


def test_nothing_observed_is_no_verdict() -> None:
    found = compare(SOLVED, [], 5_000, 0.05)
    assert (found.verdict, found.difference.n, found.difference.mean) == ("open", 0, None)
    found = compare(SOLVED, [Observed("control", 1.0)], 5_000, 0.05)
    assert (found.verdict, found.difference.n, found.difference.low, found.difference.high) == ("open", 1, -1.0, 1.0)


def test_one_arm_that_reports_less_often_is_a_warning() -> None:
    outcomes = _outcomes(4_000, 0.5, 0.5)
    silent = [seen for index, seen in enumerate(outcomes) if seen.side == "control" or index % 3]
    made = rollout(50, metrics=(SOLVED, Metric("rating", 1, 5)))
    found = report(made, {}, Evidence(outcomes={"solved": silent}))
    [warning] = found.warnings
    assert "users who report solved differ from the split" in warning
    assert [comparison.imbalance > 100 for comparison in found.comparisons] == [True, False]
    assert report(made, {}, Evidence(outcomes={"solved": outcomes})).warnings == []


def _report(n: int = 2_000, treatment: float = 0.3) -> RolloutReport:
    traffic: dict[Side, Traffic] = {
        "control": Traffic(1_500, 1_000, 2, 30_000, 9_000, (0.1, 0.2, 0.3)),
        "treatment": Traffic(1_490, 990, 0, 29_000, 9_100, ()),
    }
    made = rollout(50, metrics=(SOLVED, Metric("rating", 1, 5)), overrides={"ann": "control"})
    return report(made, traffic, Evidence(outcomes={"solved": _outcomes(n, 0.5, treatment)}))


def test_a_report_shows_the_arms_traffic_and_warns() -> None:
    found = _report()
    record = json.loads(json.dumps(asdict(found.as_record())))
    assert record["share"] == record["split"] == 50
    assert record["arms"]["control"]["seconds"] == {"median": pytest.approx(0.2), "p95": pytest.approx(0.29)}
    assert record["arms"]["treatment"]["seconds"] is None
    assert record["arms"]["treatment"]["units"] == 990
    solved, rating = record["comparisons"]
    assert (solved["verdict"], rating["verdict"], rating["difference"]["n"]) == ("worse", "open", 0)
    assert solved["alpha"] == 0.025, "5 % over two metrics"
    assert record["imbalance"] < 1
    [warning] = record["warnings"]
    assert "worse on solved" in warning
    assert _report(treatment=0.5).warnings == []
    lost = report(rollout(50), {"control": Traffic(units=1_000), "treatment": Traffic(units=800)}, Evidence())
    assert "no comparison here can be trusted" in lost.warnings[0]


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_a_picture_is_written_and_the_same_report_gives_the_same_file(name: str, start: bytes, tmp_path: Path) -> None:
    for n in (0, 500):
        draw(_report(n), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        assert first.startswith(start)
        draw(_report(n), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first


def test_a_picture_that_cannot_be_drawn_is_reported(tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"named \*\.png or \*\.svg"):
        draw(_report(), tmp_path / "a.pdf")
    with pytest.raises(EditError, match="no metrics to draw"):
        draw(report(rollout(), {}, Evidence()), tmp_path / "a.png")
