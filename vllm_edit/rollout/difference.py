"""The difference of the arms: one observation for each unit, in the order of arrival, by inverse weights.

Source: the estimate of an average treatment effect of Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences" (Annals of Statistics 2021), with one prediction of the outcome for both arms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vllm_edit.rollout.sequential import Array, before, confidence_sequence


def unit_differences(values: Array, treated: NDArray[np.bool_], low: float, high: float, share: float) -> Array:
    """Return an observation of treatment minus control for each unit, in the metric's units: [..., n].

    With the outcome Yᵢ of unit i, the share s of the units on treatment, and the mean mᵢ₋₁ of the outcomes before it

        Xᵢ = (Yᵢ − mᵢ₋₁) / s          if unit i is on treatment
        Xᵢ = −(Yᵢ − mᵢ₋₁) / (1 − s)   if it is on control

    m₀ is the middle of the range. Given everything before unit i, the side is treatment with probability s, so

        E[Xᵢ] = E[Yᵢ(treatment) − mᵢ₋₁] − E[Yᵢ(control) − mᵢ₋₁] = E[Yᵢ(treatment)] − E[Yᵢ(control)].

    A level that both arms share at that time cancels, and so does mᵢ₋₁. It is there to reduce the variance. Like the
    outcome it is in [low, high], so |Xᵢ| ≤ (high − low) · max(1/s, 1/(1 − s)).

    Args:
        values: The units' outcomes in the order of arrival, [..., n].
        treated: True for the units on treatment, [..., n].
        low, high: The range of the outcomes.
        share: The intended share of the units on treatment, above 0 and below 1.
    """
    index = np.arange(1, values.shape[-1] + 1)
    centres = before(np.cumsum(values, axis=-1) / index, (low + high) / 2)
    weighted: Array = (values - centres) * np.where(treated, 1 / share, -1 / (1 - share))
    return weighted


def difference_sequence(
    values: Array, treated: NDArray[np.bool_], low: float, high: float, share: float, alpha: float
) -> tuple[Array, Array, Array]:
    """Return (estimate, lower, upper) of treatment minus control after each unit: each [..., n], in the metric's units.

    It is the `confidence_sequence` of `unit_differences`, cut to the differences that the range allows. If the arms are
    equal at every time, the probability that it ever excludes zero is at most alpha, whatever drift they share: then
    every observation has mean 0. If the effect drifts, it covers the mean of the effects so far, each with the weight
    of its unit's bet. If treatment is never worse by more than a margin, neither is that mean.

    Assumptions: a unit's side does not depend on its place in the order, or on the outcomes before it. So the arms have
    to report equally often and equally late. Otherwise E[Xᵢ] is off by (p/s − (1 − p)/(1 − s)) · (E[Yᵢ] − mᵢ₋₁) with
    the share p that reports from treatment: nothing without drift, and little if p is near s.

    Args:
        values: The units' outcomes in the order of arrival, [..., n].
        treated: True for the units on treatment, [..., n].
        low, high: The range of the outcomes.
        share: The intended share of the units on treatment, above 0 and below 1.
        alpha: Error probability.
    """
    width = high - low
    most = width * max(1 / share, 1 / (1 - share))
    path = confidence_sequence(unit_differences(values, treated, low, high, share), -most, most, alpha)
    estimate, lower, upper = (np.clip(part, -width, width) for part in path)
    return estimate, lower, upper
