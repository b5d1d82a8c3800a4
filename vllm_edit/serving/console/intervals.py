"""Where a comparison's intervals lie on a page: percentages of the picture's width."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_edit.rollout.arm import SIDES
from vllm_edit.rollout.comparison import Comparison, Estimate

_MARGIN = 2.0  # per cent of the width at both ends


@dataclass(frozen=True)
class Bar:
    """An estimate with its interval. x_…: their places, in per cent of the width; None without observations."""

    label: str
    estimate: Estimate
    x_low: float | None
    x_mean: float | None
    x_high: float | None

    @property
    def width(self) -> float:
        """The interval's width, in per cent; at least a visible line."""
        return max(0.3, (self.x_high or 0.0) - (self.x_low or 0.0))


@dataclass(frozen=True)
class Axis:
    """A common scale of several bars, with its ends and, if it is inside, zero."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """The value's place in per cent of the width."""
        return _MARGIN + (100 - 2 * _MARGIN) * (value - self.low) / (self.high - self.low)

    @property
    def zero(self) -> float | None:
        return self.place(0.0) if self.low <= 0 <= self.high else None

    def bar(self, label: str, estimate: Estimate) -> Bar:
        if estimate.mean is None or estimate.low is None or estimate.high is None:
            return Bar(label, estimate, None, None, None)
        return Bar(label, estimate, *(self.place(value) for value in (estimate.low, estimate.mean, estimate.high)))


@dataclass(frozen=True)
class Drawn:
    """A metric's picture: the arms on the metric's scale, and treatment minus control on a scale with zero inside."""

    comparison: Comparison
    axis: Axis
    arms: tuple[Bar, ...]
    difference_axis: Axis
    difference: Bar


def draw(comparison: Comparison) -> Drawn:
    """Lay out the intervals of a comparison."""
    arms = {side: comparison.arms[side] for side in SIDES}
    axis = _axis(tuple(arms.values()), comparison.metric.low, comparison.metric.high)
    width = comparison.metric.high - comparison.metric.low
    difference_axis = _axis((comparison.difference, Estimate(1, 0.0, 0.0, 0.0)), -width, width)
    return Drawn(
        comparison,
        axis,
        tuple(axis.bar(side, estimate) for side, estimate in arms.items()),
        difference_axis,
        difference_axis.bar("difference", comparison.difference),
    )


def _axis(estimates: tuple[Estimate, ...], low: float, high: float) -> Axis:
    """A scale around all intervals, within [low, high]; that whole range if there are none."""
    ends = [value for found in estimates for value in (found.low, found.high) if value is not None]
    least, most = max(low, min(ends, default=low)), min(high, max(ends, default=high))
    room = 0.1 * (most - least) or 0.1 * (high - low)
    return Axis(max(low, least - room), min(high, most + room))
