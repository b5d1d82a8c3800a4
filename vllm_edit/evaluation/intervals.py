"""95 % confidence intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

Resampled = tuple[float, float] | tuple[None, None]
"""An interval by resampling; without ends if there is only one observation, which shows no spread."""
Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson(share: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share observed over n units: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n).

    Also used for a mean of n values in [0, 1] (shares of several probes per edit): their variance is at most
    p(1−p), so the interval is then too wide rather than too narrow.
    """
    if n <= 0:
        raise ValueError(f"an interval needs at least one observation, got n = {n}")
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and 1 one end is the share itself, up to rounding.
    return max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))


def bootstrap(values: Sequence[float], resamples: int = 1000, seed: int = 0) -> Resampled:
    """Percentile interval of the mean of `values`, one per edit, by seeded resampling."""
    return resampled_means([values], lambda means: means[0], resamples, seed)


def resampled_means(
    samples: Sequence[Sequence[float]],
    statistic: Callable[[Sequence[float]], float],
    resamples: int = 1000,
    seed: int = 0,
) -> Resampled:
    """Percentile interval of a statistic of the means of `samples`, each resampled by itself, with a seed.

    Raises:
        ValueError: a sample is empty.
    """
    if not all(samples):
        raise ValueError("an interval needs at least one observation")
    if max(map(len, samples)) == 1:
        return None, None
    rng = random.Random(seed)
    return _middle(
        statistic([sum(rng.choices(values, k=len(values))) / len(values) for values in samples])
        for _ in range(resamples)
    )


def resampled(
    count: int, statistic: Callable[[Sequence[int]], float | None], resamples: int = 1000, seed: int = 0
) -> Resampled:
    """Percentile interval of a statistic over `count` edits, by seeded resampling.

    Args:
        count: number of edits.
        statistic: from the indices of a resample to its value; None (a resample without an edit that the statistic
            needs) is left out.
        resamples: number of resamples.
        seed: random seed.

    Raises:
        ValueError: `count` is not positive.
    """
    if count <= 0:
        raise ValueError(f"an interval needs at least one observation, got {count}")
    if count == 1:
        return None, None
    rng, numbers = random.Random(seed), range(count)
    drawn = (statistic(rng.choices(numbers, k=count)) for _ in range(resamples))
    return _middle(value for value in drawn if value is not None)


def _middle(values: Iterable[float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles."""
    ordered = sorted(values)
    return ordered[round(0.025 * (len(ordered) - 1))], ordered[round(0.975 * (len(ordered) - 1))]
