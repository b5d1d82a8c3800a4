"""Simulated observations that are looked at one by one: error rates of the intervals, and of the split's e-value.

Seeds are fixed, so a failure is a change of the code and no bad luck.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vllm_edit.rollout.sequential import Array, confidence_sequence, imbalance

ALPHA = 0.05
RUNS, LOOKS = 2_000, 600


def _ever(missed: NDArray[np.bool_]) -> float:
    """Share of runs [runs, looks] that missed at some look."""
    return float(missed.any(axis=1).mean())


def _drawn(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    if kind == "uniform":
        return rng.random(shape)
    if kind == "extreme":
        return rng.beta(0.1, 0.3, shape)
    return (rng.random(shape) < float(kind)).astype(np.float64)


MEANS = {"uniform": 0.5, "extreme": 0.25, "0.5": 0.5, "0.1": 0.1, "0.01": 0.01, "0.99": 0.99}


@pytest.mark.parametrize("kind", MEANS)
def test_the_mean_stays_in_its_interval_at_every_look(kind: str) -> None:
    observed = 4 * _drawn(kind, np.random.default_rng(2), (RUNS, LOOKS)) + 1  # ratings from 1 to 5
    estimate, lower, upper = confidence_sequence(observed, 1.0, 5.0, ALPHA)
    mean = 4 * MEANS[kind] + 1
    assert _ever((lower > mean) | (upper < mean)) <= ALPHA
    assert ((lower <= estimate) & (estimate <= upper)).all()
    assert (lower >= 1).all()
    assert (upper <= 5).all()


def test_an_interval_made_for_one_look_would_not_do() -> None:
    """The check above can fail: the ordinary 95 % interval, watched as closely, errs in a third of the runs."""
    rng = np.random.default_rng(1)
    differences = _drawn("0.5", rng, (RUNS, LOOKS)) - _drawn("0.5", rng, (RUNS, LOOKS))
    n = np.arange(1, LOOKS + 1)
    means = np.cumsum(differences, axis=1) / n
    deviations = np.sqrt(np.maximum(np.cumsum(differences**2, axis=1) / n - means**2, 1e-12))
    missed = np.abs(means) > 1.96 * deviations / np.sqrt(n)
    assert _ever(missed[:, 29:]) > 0.3


def test_intervals_narrow_as_the_square_root_of_the_observations() -> None:
    observed = _drawn("0.5", np.random.default_rng(5), (20, 40_000))
    _, lower, upper = confidence_sequence(observed, 0.0, 1.0, ALPHA)
    width = (upper - lower).mean(axis=0)
    assert width[-1] < 0.03
    assert 1.5 < width[9_999] / width[-1] < 2.1, "a quarter of the width would need 16 times as many; √4 = 2"


def test_an_interval_depends_only_on_earlier_observations() -> None:
    observed = _drawn("uniform", np.random.default_rng(6), (1, 200))
    whole = confidence_sequence(observed, 0.0, 1.0, ALPHA)
    part = confidence_sequence(observed[:, :120], 0.0, 1.0, ALPHA)
    for of_whole, of_part in zip(whole, part, strict=True):
        np.testing.assert_array_equal(of_whole[:, :120], of_part)
    assert all(bound.shape == (0,) for bound in confidence_sequence(np.zeros(0), 0.0, 1.0, ALPHA))


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_sides_that_are_drawn_as_intended_are_hardly_ever_suspected(share: float) -> None:
    rng = np.random.default_rng(7)
    runs, looks = 1_000, 300
    treated = np.cumsum(rng.random((runs, looks)) < share, axis=1)
    known = {(k, n): imbalance(int(k), n, share) for n in range(1, looks + 1) for k in np.unique(treated[:, n - 1])}
    evidence = np.array([[known[int(k), n] for n, k in enumerate(run, start=1)] for run in treated])
    assert _ever(evidence >= 1 / ALPHA) <= ALPHA
    assert imbalance(0, 0, share) == pytest.approx(1.0)


def test_lost_requests_of_one_side_are_suspected() -> None:
    assert imbalance(4_600, 10_000, 0.5) > 1e6
    assert imbalance(5_050, 10_000, 0.5) < 1
    assert imbalance(0, 1_000_000, 0.5) > 1e300, "and no overflow"
