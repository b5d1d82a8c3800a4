"""Intervals that are valid at every look: a confidence sequence for the mean of bounded observations.

An ordinary 95 % interval that is recomputed after each observation misses the true mean eventually, with certainty. A
confidence sequence ever misses it with probability at most alpha, so a rollout may be watched and stopped at any time.

Sources: Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Annals of
Statistics 2021), Theorem 4 (empirical Bernstein); Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting" (JRSS B 2023), Theorem 2 (the predictable weights used here). Johari, Pekelis, Walsh, "Always
valid inference" (arXiv 1512.04922; KDD 2017) motivate the use in A/B tests; their mixture SPRT is asymptotic for a
difference of means, while the boundary here needs no large sample.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BOLDEST = 0.5  # cap on a bet, as a share of the largest admissible bet (the paper's c); near 1, outliers cost too much


def confidence_sequence(observed: Array, low: float, high: float, alpha: float) -> tuple[Array, Array, Array]:
    """Return (estimate, lower, upper) after each observation: each [..., n], for observations [..., n] in [low, high].

    With predictable (known before Xᵢ) estimates X̂ᵢ, bounds cᵢ ≥ |Xᵢ − X̂ᵢ| and bets λᵢ ∈ (0, 1/cᵢ),

        Σ λᵢXᵢ / Σ λᵢ  ±  (log(2/α) + Σ (Xᵢ − X̂ᵢ)² ψ(λᵢ, cᵢ)) / Σ λᵢ,     ψ(λ, c) = (−log(1 − cλ) − cλ) / c²

    λᵢ = √(2 log(2/α) / (σ̂²ᵢ₋₁ · i · log(1 + i))), capped at half of 1/cᵢ; σ̂² is the running variance, with a quarter of
    the squared range as one prior observation.

    Assumption: every observation has the same mean μ given those before it (independent and identically distributed
    is enough). Each observation multiplies exp(Σ λᵢ(Xᵢ − μ) − (Xᵢ − X̂ᵢ)² ψ) by 1 in expectation at most (Fan, Grama,
    Liu 2015), so by Ville's inequality it ever exceeds 2/α with probability at most α/2; likewise for the other side.
    If the means given the past differ, μᵢ, the same holds with λᵢ(Xᵢ − μᵢ): the interval is then of Σ λᵢμᵢ / Σ λᵢ.
    """
    n = observed.shape[-1]
    index = np.arange(1, n + 1)
    centre, width = (low + high) / 2, high - low
    means = (centre + np.cumsum(observed, axis=-1)) / (index + 1)  # the middle of the range is one prior observation
    estimates = before(means, centre)
    surprises = (observed - estimates) ** 2
    variances = before((width**2 / 4 + np.cumsum(surprises, axis=-1)) / (index + 1), width**2 / 4)
    bounds = np.maximum(high - estimates, estimates - low)
    level = math.log(2 / alpha)
    bets = np.minimum(np.sqrt(2 * level / (variances * index * np.log1p(index))), _BOLDEST / bounds)
    cost = (-np.log1p(-bounds * bets) - bounds * bets) / bounds**2
    total = np.cumsum(bets, axis=-1)
    estimate = np.clip(np.cumsum(bets * observed, axis=-1) / total, low, high)  # rounding can exceed the range
    radius = (level + np.cumsum(surprises * cost, axis=-1)) / total
    return estimate, np.maximum(estimate - radius, low), np.minimum(estimate + radius, high)


def before(running: Array, first: float) -> Array:
    """Return `running` [..., n] shifted by one: its value before each observation."""
    begun = np.full_like(running[..., :1], first)
    return np.concatenate([begun, running[..., :-1]], axis=-1)


def imbalance(treated: int, total: int, share: float) -> float:
    """Return the evidence that sides were not drawn with probability `share`: an e-value.

    It is 1 without observations, and ever exceeds 1/α with probability at most α if the share is right.

    The e-value ∫ pᵏ(1−p)ⁿ⁻ᵏ dBeta(p; 2s, 2(1−s)) / sᵏ(1−s)ⁿ⁻ᵏ, a mixture SPRT of the binomial around the intended share
    s (Johari et al., section 5; for counts see Lindon and Malek, "Anytime-valid inference for multinomial count data",
    NeurIPS 2022). A sample-ratio mismatch means that requests of one side are lost, which invalidates comparisons.
    """
    a, b = 2 * share, 2 * (1 - share)
    others = total - treated
    log_mixture = _log_beta(a + treated, b + others) - _log_beta(a, b)
    log_null = treated * math.log(share) + others * math.log1p(-share)
    return math.exp(min(log_mixture - log_null, 700.0))  # larger exponents overflow


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
