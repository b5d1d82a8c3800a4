"""Percentiles of measured times."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of the values that `percent` % of them do not exceed (nearest rank). It is never above the maximum.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("expected at least one value")
    rank = max(1, -(-percent * len(values) // 100))
    return sorted(values)[rank - 1]
