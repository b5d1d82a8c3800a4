"""Treatment against control on one metric, at any look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """A mean with its interval, which holds at every look at once. n: observations; None where there are none."""

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """outcomes: all that were reported, by side. arms: means over units. difference: treatment minus control over
    blocks. verdict: on treatment; decided_at: the block whose interval first left zero out. path: interval by block."""

    metric: Metric
    alpha: float
    outcomes: dict[Side, int]
    arms: dict[Side, Estimate]
    difference: Estimate
    verdict: Verdict
    decided_at: int | None
    path: tuple[Array, Array, Array]


def compare(metric: Metric, observed: Sequence[Observed], split: int, alpha: float) -> Comparison:
    """Compare the sides on the units' first outcomes, in the order in which they came.

    One outcome per unit, as those of one user depend on each other. The k-th of the rarer side is taken with the mean
    of the next m of the other (m by the intended split): Xₖ = Yₖ(treatment) − Yₖ(control), and the confidence sequence
    of E[X] leaves zero out with probability ≤ alpha, ever, if the arms are equal. Taking them in turn, rather than
    holding two intervals against each other, needs half as many users, and what shifts both arms alike with time
    cancels. What a side has beyond the blocks that are full waits for its counterpart.
    """
    values = {
        side: np.array([one.value for one in observed if one.side == side], dtype=np.float64)
        for side in ("control", "treatment")
    }
    treated, control = _block_sizes(split)
    blocks = min(len(values["treatment"]) // treated, len(values["control"]) // control)
    differences = _means(values["treatment"], treated, blocks) - _means(values["control"], control, blocks)
    width = metric.high - metric.low
    path = confidence_sequence(differences, -width, width, alpha)
    decided_at, verdict = _decided(path, metric)
    counts: dict[Side, int] = {"control": 0, "treatment": 0}
    for one in observed:
        counts[one.side] += one.count
    arms: dict[Side, Estimate] = {
        side: _last(confidence_sequence(values[side], metric.low, metric.high, alpha), len(values[side]))
        for side in counts
    }
    return Comparison(metric, alpha, counts, arms, _last(path, blocks), verdict, decided_at, path)


def _block_sizes(split: int) -> tuple[int, int]:
    """(treatments, controls) of a block: 1 of the rarer side, and of the other as many as come with one."""
    ratio = (BUCKETS - split) / split
    return (1, round(ratio)) if ratio >= 1 else (round(1 / ratio), 1)


def _means(values: Array, size: int, blocks: int) -> Array:
    """[blocks] means of `size` consecutive values each."""
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


def _last(path: tuple[Array, Array, Array], n: int) -> Estimate:
    if n == 0:
        return Estimate(0)
    estimate, lower, upper = (float(one[-1]) for one in path)
    return Estimate(n, estimate, lower, upper)
