"""Simulated rollouts that are looked at after every user: error rates and power of the arms' comparison.

Seeds are fixed, so a failure is a change of the code and no bad luck.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from vllm_edit.rollout.difference import difference_sequence, unit_differences
from vllm_edit.rollout.sequential import Array

ALPHA = 0.05
RUNS = 300


def _users(
    control: float | Array, treatment: float | Array, share: float, shape: tuple[int, int], seed: int
) -> tuple[Array, NDArray[np.bool_]]:
    """Outcomes of 0 or 1 with these rates, and who is on treatment: each [runs, users]. A rate may be [users]."""
    rng = np.random.default_rng(seed)
    treated = rng.random(shape) < share
    return (rng.random(shape) < np.where(treated, treatment, control)).astype(np.float64), treated


def _decided(values: Array, treated: NDArray[np.bool_], share: float) -> tuple[float, float]:
    """Shares of the runs that at some look call treatment's values (lower, higher)."""
    _, lower, upper = difference_sequence(values, treated, 0.0, 1.0, share, ALPHA)
    return float((upper < 0).any(axis=1).mean()), float((lower > 0).any(axis=1).mean())


def test_an_example_by_hand() -> None:
    """Range 1..5, so the first centre is 3, and a quarter of the users on treatment: weights 4 and -4/3."""
    values, treated = np.array([5.0, 2.0, 5.0, 4.0]), np.array([True, False, True, False])
    found = unit_differences(values, treated, 1.0, 5.0, 0.25)
    np.testing.assert_allclose(found, [(5 - 3) * 4, (2 - 5) * -4 / 3, (5 - 3.5) * 4, (4 - 4) * -4 / 3])
    estimate, lower, upper = difference_sequence(values, treated, 1.0, 5.0, 0.25, ALPHA)
    assert estimate[0] == 4, "8, cut to the greatest difference that the range allows"
    assert ((lower == -4) & (upper == 4)).all(), "four users decide nothing"
    assert all(part.shape == (0,) for part in difference_sequence(values[:0], treated[:0], 1.0, 5.0, 0.25, ALPHA))


@pytest.mark.parametrize("share", [0.5, 0.3, 0.9, 0.01])
def test_an_observation_depends_on_earlier_users_only_and_stays_within_its_bound(share: float) -> None:
    rng = np.random.default_rng(0)
    values, treated = 4 * rng.beta(0.1, 0.1, (20, 500)) + 1, rng.random((20, 500)) < share
    found = unit_differences(values, treated, 1.0, 5.0, share)
    assert np.abs(found).max() <= 4 * max(1 / share, 1 / (1 - share))
    np.testing.assert_array_equal(unit_differences(values[:, :300], treated[:, :300], 1.0, 5.0, share), found[:, :300])


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01, 0.99])
def test_equal_arms_are_hardly_ever_called_different_at_any_look(rate: float) -> None:
    assert sum(_decided(*_users(rate, rate, 0.5, (1_000, 1_200), seed=1), 0.5)) <= ALPHA


@pytest.mark.parametrize("share", [0.5, 0.3, 0.6])
def test_an_incident_that_both_arms_share_decides_nothing(share: float) -> None:
    """200 users in a row fail on both arms. Pairs of users by their rank within the arms called that a difference."""
    rate = np.full(4_000, 0.02)
    rate[2_000:2_200] = 1.0
    assert sum(_decided(*_users(rate, rate, share, (RUNS, 4_000), seed=2), share)) <= ALPHA


@pytest.mark.parametrize("share", [0.5, 0.3, 0.6])
def test_drift_that_both_arms_share_decides_nothing(share: float) -> None:
    rate = 0.5 + 0.4 * np.sin(np.arange(2_000) / 100)
    assert sum(_decided(*_users(rate, rate, share, (RUNS, 2_000), seed=3), share)) <= ALPHA


@pytest.mark.parametrize(("control", "treatment"), [(0.5, 0.6), (0.1, 0.16), (0.02, 0.06)])
def test_a_difference_is_found_with_about_twice_the_users_of_a_test_of_one_look(
    control: float, treatment: float
) -> None:
    variance = control * (1 - control) + treatment * (1 - treatment)
    planned = 2 * math.ceil((1.960 + 0.842) ** 2 * variance / (treatment - control) ** 2)  # 80 % power at 5 %
    values, treated = _users(control, treatment, 0.5, (300, 4 * planned), seed=4)
    _, lower, upper = difference_sequence(values, treated, 0.0, 1.0, 0.5, ALPHA)
    found = lower > 0
    half, four_fifths = np.quantile(
        np.where(found.any(axis=1), found.argmax(axis=1), np.inf), (0.5, 0.8), method="higher"
    )
    assert half < 2.5 * planned
    assert four_fifths < 3.9 * planned
    assert (upper < 0).any(axis=1).mean() < ALPHA, "and never the wrong way round"


@pytest.mark.parametrize(("share", "users"), [(0.5, 700), (0.3, 1_000), (0.1, 3_000), (0.9, 5_000)])
def test_a_difference_is_found_at_every_split(share: float, users: int) -> None:
    lower, higher = _decided(*_users(0.02, 0.12, share, (200, users), seed=5), share)
    assert higher > 0.9
    assert lower == 0


def test_a_difference_that_drifts_is_covered_by_its_mean_so_far() -> None:
    """Treatment is worse by 0 to 0.2, by turns: it is never called better, nor worse by more than 0.2."""
    more = 0.1 + 0.1 * np.sin(np.arange(4_000) / 100)
    values, treated = _users(0.3, 0.3 + more, 0.3, (RUNS, 4_000), seed=6)
    _, lower, upper = difference_sequence(values, treated, 0.0, 1.0, 0.3, ALPHA)
    assert ((lower > 0.2) | (upper < 0)).any(axis=1).mean() <= ALPHA
    assert (lower[:, -1] > 0).mean() > 0.9
