"""Comparison of treatment and control on one metric, valid at any look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from vllm_edit.rollout.arm import Side
from vllm_edit.rollout.buckets import BUCKETS
from vllm_edit.rollout.difference import difference_sequence
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.outcomes import Observed
from vllm_edit.rollout.sequential import Array, confidence_sequence, imbalance

Verdict = Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Estimate:
    """The mean of `n` observations with its interval, valid at every look; None without observations."""

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Summary:
    """Summary of the comparison of the arms on one metric.

    Attributes:
        metric: The metric.
        alpha: Error probability of the intervals.
        outcomes: Number of all reported outcomes, by side.
        arms: Means over units, by side.
        difference: Treatment minus control, over the units of both sides.
        verdict: Verdict on treatment.
        decided_at: Number of the first unit, of both sides, after which the interval excludes zero; None if there is
            none.
        imbalance: Evidence (an e-value) that the numbers of units with outcomes do not follow the split.
    """

    metric: Metric
    alpha: float
    outcomes: dict[Side, int]
    arms: dict[Side, Estimate]
    difference: Estimate
    verdict: Verdict
    decided_at: int | None
    imbalance: float


@dataclass(frozen=True)
class Comparison(Summary):
    """A comparison with its course. `path`: (estimate, lower, upper) after each unit of both sides, each [units]."""

    path: tuple[Array, Array, Array]

    @property
    def summary(self) -> Summary:
        """The comparison without its course."""
        return Summary(**{part.name: getattr(self, part.name) for part in fields(Summary)})


def compare(metric: Metric, observed: Sequence[Observed], split: int, alpha: float) -> Comparison:
    """Compare the sides on the units' first outcomes, in the order of arrival.

    Each unit counts once, since outcomes of one user are dependent. The difference of the arms has one observation for
    each unit of either side (`difference.unit_differences`). If the arms are equal, the probability that the interval
    ever excludes zero is at most alpha, also if outcomes drift: drift that both arms share cancels within each
    observation. One sequence of differences needs half as many units as a comparison of the arms' own intervals.

    Args:
        metric: The metric, with its range.
        observed: The first outcome of each unit, in the order of arrival.
        split: Buckets (of 10,000) on treatment.
        alpha: Error probability.
    """
    values = np.array([outcome.value for outcome in observed], dtype=np.float64)
    treated = np.array([outcome.side == "treatment" for outcome in observed], dtype=np.bool_)
    path = difference_sequence(values, treated, metric.low, metric.high, split / BUCKETS, alpha)
    decided_at, verdict = _decided(path, metric)
    counts: dict[Side, int] = {"control": 0, "treatment": 0}
    for outcome in observed:
        counts[outcome.side] += outcome.count
    arms: dict[Side, Estimate] = {}
    for side in counts:
        of_side = values[treated == (side == "treatment")]
        arms[side] = last_estimate(confidence_sequence(of_side, metric.low, metric.high, alpha), len(of_side))
    found = last_estimate(path, len(values))
    suspected = imbalance(int(treated.sum()), len(treated), split / BUCKETS)
    return Comparison(metric, alpha, counts, arms, found, verdict, decided_at, suspected, path)


def _decided(path: tuple[Array, Array, Array], metric: Metric) -> tuple[int | None, Verdict]:
    _, lower, upper = path
    away = (lower > 0) | (upper < 0)
    if not away.any():
        return None, "open"
    first = int(away.argmax())
    rises = bool(lower[first] > 0)
    return first + 1, "better" if rises == (metric.better == "higher") else "worse"


def last_estimate(path: tuple[Array, Array, Array], n: int) -> Estimate:
    """Return the end of a path of (estimate, lower, upper), each [n], as an estimate."""
    if n == 0:
        return Estimate(0)
    estimate, lower, upper = (float(values[-1]) for values in path)
    return Estimate(n, estimate, lower, upper)
