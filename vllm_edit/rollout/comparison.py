"""Comparison of treatment and control on one metric, valid at any look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from vllm_edit.rollout.arm import Side
from vllm_edit.rollout.buckets import BUCKETS
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.outcomes import Observed
from vllm_edit.rollout.sequential import Array, confidence_sequence

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
        difference: Treatment minus control, over blocks.
        verdict: Verdict on treatment.
        decided_at: Number of the first block whose interval excludes zero; None if there is none.
    """

    metric: Metric
    alpha: float
    outcomes: dict[Side, int]
    arms: dict[Side, Estimate]
    difference: Estimate
    verdict: Verdict
    decided_at: int | None


@dataclass(frozen=True)
class Comparison(Summary):
    """A comparison with its course. `path`: (estimate, lower, upper) after each block, each [blocks]."""

    path: tuple[Array, Array, Array]

    @property
    def summary(self) -> Summary:
        """The comparison without its course."""
        return Summary(**{part.name: getattr(self, part.name) for part in fields(Summary)})


def compare(metric: Metric, observed: Sequence[Observed], split: int, alpha: float) -> Comparison:
    """Compare the sides on the units' first outcomes, in the order of arrival.

    Each unit counts once, since outcomes of one user are dependent. Block k pairs the k-th outcome of the rarer side
    with the mean of the next m outcomes of the other side (m follows from the intended split):
    Xₖ = Yₖ(treatment) − Yₖ(control). If the arms are equal, the probability that the confidence sequence of E[X] ever
    excludes zero is at most alpha. Pairing needs half as many users as a comparison of two intervals, and drift that
    affects both arms cancels. Outcomes beyond the last full block wait for their counterpart.

    Args:
        metric: The metric, with its range.
        observed: The first outcome of each unit.
        split: Buckets (of 10,000) on treatment.
        alpha: Error probability.
    """
    values = {
        side: np.array([outcome.value for outcome in observed if outcome.side == side], dtype=np.float64)
        for side in ("control", "treatment")
    }
    treated, control = _block_sizes(split)
    blocks = min(len(values["treatment"]) // treated, len(values["control"]) // control)
    differences = _means(values["treatment"], treated, blocks) - _means(values["control"], control, blocks)
    width = metric.high - metric.low
    path = confidence_sequence(differences, -width, width, alpha)
    decided_at, verdict = _decided(path, metric)
    counts: dict[Side, int] = {"control": 0, "treatment": 0}
    for outcome in observed:
        counts[outcome.side] += outcome.count
    arms: dict[Side, Estimate] = {
        side: last_estimate(confidence_sequence(values[side], metric.low, metric.high, alpha), len(values[side]))
        for side in counts
    }
    return Comparison(metric, alpha, counts, arms, last_estimate(path, blocks), verdict, decided_at, path)


def _block_sizes(split: int) -> tuple[int, int]:
    """Return (treatments, controls) of a block: 1 of the rarer side, and the rounded ratio for the other."""
    ratio = (BUCKETS - split) / split
    return (1, round(ratio)) if ratio >= 1 else (round(1 / ratio), 1)


def _means(values: Array, size: int, blocks: int) -> Array:
    """Return the means [blocks] of `size` consecutive values each."""
    means: Array = values[: blocks * size].reshape(blocks, size).mean(axis=1)
    return means


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
