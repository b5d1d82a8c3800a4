"""Intervals against published values and against their definition."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_edit.evaluation.intervals import Z95, bootstrap, resampled, resampled_means, wilson


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        (81 / 263, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, Table I, method 3
        (15 / 148, 148, 0.0624, 0.1605),
        (0 / 20, 20, 0.0000, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_published_intervals(share: float, n: int, low: float, high: float) -> None:
    assert wilson(share, n) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_its_ends_are_the_score_tests(n: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, n)) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(share - end) == pytest.approx(Z95 * (end * (1 - end) / n) ** 0.5, abs=1e-9)


def test_bootstrap_is_seeded_and_covers_the_mean_as_the_normal_interval_does() -> None:
    rng = random.Random(3)
    values = [rng.gauss(2.0, 1.0) for _ in range(400)]
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values)
    mean = sum(values) / 400
    deviation = (sum((value - mean) ** 2 for value in values) / 399) ** 0.5
    assert (low, high) == pytest.approx((mean - Z95 * deviation / 20, mean + Z95 * deviation / 20), abs=0.02)


def test_resampling_any_statistic_draws_as_the_bootstrap_of_a_mean_does() -> None:
    values = [0.0, 1.0, 5.0, 2.0, 8.0, 3.0]
    assert resampled(6, lambda drawn: sum(values[place] for place in drawn) / 6) == pytest.approx(bootstrap(values))
    least = resampled(6, lambda drawn: None if 4 in drawn else min(values[place] for place in drawn))
    assert least == (0.0, 2.0), "draws without a value are left out"


def test_resampled_means_draw_each_sample_by_itself() -> None:
    one, other = [0.0, 1.0, 5.0], [2.0, 8.0]
    assert resampled_means([one], lambda means: means[0]) == bootstrap(one)
    low, high = resampled_means([one, other], lambda means: means[1] - means[0])
    assert low is not None
    assert high is not None
    assert low < sum(other) / 2 - sum(one) / 3 < high
    assert resampled_means([[1.0], other], min) == (1.0, 1.0)


def test_one_observation_has_no_interval_by_resampling() -> None:
    assert bootstrap([3.0]) == (None, None)
    assert resampled(1, lambda drawn: 3.0) == (None, None)
    assert resampled_means([[3.0], [4.0]], sum) == (None, None)


def test_nothing_observed_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0.0, 0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])
    with pytest.raises(ValueError, match="at least one"):
        resampled(0, len)
