"""The kinds of charts on pages: bars, points and lines, of shares with intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from vllm_edit.pages.drawing import as_svg, colour, drawing
from vllm_edit.text.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 340
"""Width of a chart in CSS pixels: that of a phone."""
_LABEL = 40
"""Characters of a label that are drawn."""
_NOT_XML = re.compile("[\ufffe\uffff]")
"""The characters that XML, and so SVG, cannot hold; the others are escaped."""
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Value:
    """A value with its interval; `low` and `high` are None without an interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        between = "" if self.low is None or self.high is None else f" ({self.low:.3g} to {self.high:.3g})"
        return f"{self.value:.3g}{between}"

    @property
    def reach(self) -> tuple[float, float]:
        """Distances from the value to the ends of its interval."""
        low, high = (self.value if end is None else end for end in (self.low, self.high))
        return max(0.0, self.value - low), max(0.0, high - self.value)


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot: `series` has a colour, `kind` has a marker."""

    series: str
    kind: str
    x: float
    y: Value


def bars(
    key: str,
    title: str,
    rows: Mapping[str, Mapping[str, Value]],
    colours: Mapping[str, str],
    limits: tuple[float, float] = (0, 1),
) -> Markup:
    """Horizontal bars in groups, with intervals.

    Args:
        key: the chart's name in the page.
        title: the heading of the chart.
        rows: label → series → value; at least one. A series without a value has no bar.
        colours: series → name of its colour.
        limits: the ends of the axis.
    """
    thick, gap, text = 13, 10, 17
    height = sum(text + thick * len(row) + gap for row in rows.values())
    top, bottom = 34, 24
    with drawing(WIDTH, height + top + bottom) as figure:
        low = limits[0]
        axes = figure.add_axes((10 / WIDTH, bottom / (height + top + bottom), (WIDTH - 60) / WIDTH,
                                height / (height + top + bottom)))  # fmt: skip
        axes.set(xlim=limits, ylim=(height, 0), yticks=[])
        axes.spines["left"].set_visible(False)
        at = 0.0
        drawn: list[tuple[float, Value, str]] = []
        for label, row in rows.items():
            axes.text(low, at + text - 4, _short(label), fontsize=12, clip_on=False)
            at += text
            for series, value in row.items():
                middle = at + thick / 2
                drawn.append((middle, value, colour(colours[series])))
                axes.text(1 + 8 / (WIDTH - 60), middle, f"{value.value:.2f}", transform=axes.get_yaxis_transform(),
                          fontsize=11, verticalalignment="center")  # fmt: skip
                at += thick
            at += gap
        middles, values, fills = zip(*drawn, strict=True)
        shares = [value.value for value in values]
        axes.barh(middles, [share - low for share in shares], height=thick - 3, left=low, color=fills)
        axes.errorbar(shares, middles, xerr=_reaches(values), color=colour("ink"), linestyle="none", elinewidth=1.2,
                      capsize=2.5)  # fmt: skip
        _entitle(axes, title)
        listed = "; ".join(
            f"{label}, {series}: {value}" if label != series else f"{label}: {value}"
            for label, row in rows.items()
            for series, value in row.items()
        )
        return as_svg(figure, key, title, listed)


def scatter(key: str, title: str, x_label: str, points: Sequence[Point], colours: Mapping[str, str]) -> Markup:
    """Shares over a cost, with their intervals.

    Args:
        key: the chart's name in the page.
        title: the heading of the chart.
        x_label: the cost with its unit.
        points: the points. Points of one series have one colour, points of one kind one marker.
        colours: series → name of its colour.
    """
    kinds = list(dict.fromkeys(point.kind for point in points))
    most = max((point.x for point in points), default=0.0) or 1.0
    with drawing(WIDTH, 270) as figure:
        axes = figure.add_axes((40 / WIDTH, 0.17, (WIDTH - 60) / WIDTH, 0.63))
        groups: dict[tuple[str, str], list[Point]] = {}
        for point in points:
            groups.setdefault((point.series, point.kind), []).append(point)
        for (series, name), group in groups.items():
            place = kinds.index(name)
            beside = 0.02 * most * (place - (len(kinds) - 1) / 2)  # equal shares would hide each other
            values = [point.y for point in group]
            axes.errorbar([point.x + beside for point in group], [value.value for value in values],
                          yerr=_reaches(values), color=colour(colours[series]), linestyle="none", elinewidth=1,
                          marker=_MARKERS[place % len(_MARKERS)], markersize=7, capsize=2.5)  # fmt: skip
        axes.set(ylim=(-0.05, 1.05), xlim=(-0.06 * most, 1.1 * most))
        axes.set_xlabel(x_label)
        for place, name in enumerate(kinds):
            axes.plot([], [], linestyle="none", color=colour("ink"), label=_short(name),
                      marker=_MARKERS[place % len(_MARKERS)])  # fmt: skip
        if kinds:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.05, 0.99), ncols=3, fontsize=11, handletextpad=0.1,
                        columnspacing=0.8)  # fmt: skip
        _entitle(axes, title, pad=30)
        listed = "; ".join(f"{point.series}, {point.kind}: {point.y} at {point.x:.3g}" for point in points)
        return as_svg(figure, key, title, f"{x_label}. {listed}")


def lines(
    key: str,
    title: str,
    x_label: str,
    series: Mapping[str, Sequence[tuple[float, Value]]],
    colours: Mapping[str, str],
) -> Markup:
    """Shares over a number, one line for each series, with intervals. A wide range of numbers has a log scale.

    Args:
        key: the chart's name in the page.
        title: the heading of the chart.
        x_label: the number's name.
        series: name → (number, share), in the order of the numbers.
        colours: series → name of its colour.
    """
    with drawing(WIDTH, 250) as figure:
        axes = figure.add_axes((40 / WIDTH, 0.2, (WIDTH - 60) / WIDTH, 0.66))
        numbers = [x for line in series.values() for x, _ in line]
        for name, line in series.items():
            values = [value for _, value in line]
            axes.errorbar([x for x, _ in line], [value.value for value in values], yerr=_reaches(values),
                          color=colour(colours[name]), marker="o", markersize=5, linewidth=1.6, elinewidth=1,
                          capsize=2.5)  # fmt: skip
        axes.set(ylim=(-0.03, 1.03))
        axes.set_xlabel(x_label)
        if numbers and max(numbers) > 10 * min(numbers) > 0:
            axes.set_xscale("log")
        axes.set_xticks(sorted(set(numbers))[:: max(1, len(set(numbers)) // 6)])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        _entitle(axes, title)
        listed = "; ".join(
            f"{name}: {', '.join(f'{value} at {x:g}' for x, value in line)}" for name, line in series.items()
        )
        return as_svg(figure, key, title, f"{x_label}. {listed}")


def course(
    key: str,
    title: str,
    x_label: str,
    path: tuple[Sequence[float], Sequence[float], Sequence[float]],
    decided_at: int | None,
) -> Markup:
    """A difference as observations arrive: estimate and interval, with a line at 0 and at the decision.

    Args:
        key: the chart's name in the page.
        title: the heading of the chart.
        x_label: the name of the observations.
        path: (estimate, lower, upper) after each observation, each [n].
        decided_at: number of the observation at which the interval first excluded 0.
    """
    from numpy import linspace, unique

    estimate, lower, upper = path
    n = len(estimate)
    shown = [int(place) for place in unique(linspace(0, n - 1, min(n, 2 * WIDTH)).astype(int))] if n else []
    with drawing(WIDTH, 240) as figure:
        axes = figure.add_axes((52 / WIDTH, 0.21, (WIDTH - 72) / WIDTH, 0.65))
        at = [place + 1 for place in shown]
        axes.fill_between(at, [lower[place] for place in shown], [upper[place] for place in shown],
                          color=colour("treatment"), alpha=0.25, linewidth=0)  # fmt: skip
        axes.plot(at, [estimate[place] for place in shown], color=colour("treatment"), linewidth=1.8)
        axes.axhline(0.0, color=colour("ink"), linewidth=1)
        if decided_at is not None:
            axes.axvline(decided_at, color=colour("ink"), linewidth=1, linestyle=":")
        axes.set_xlabel(x_label)
        _entitle(axes, title)
        last = f"{Value(estimate[-1], lower[-1], upper[-1])} after {n}" if n else "nothing is compared yet"
        decided = "" if decided_at is None else f"; decided after {decided_at}"
        return as_svg(figure, key, title, f"{x_label}: {last}{decided}")


def _reaches(values: Sequence[Value]) -> tuple[list[float], list[float]]:
    """The distances to the lower ends and to the upper ends, each [values]."""
    reaches = [value.reach for value in values]
    return [low for low, _ in reaches], [high for _, high in reaches]


def _entitle(axes: Axes, title: str, pad: float = 12) -> None:
    axes.set_title(_short(title), loc="left", x=0, fontweight="bold", pad=pad)


def _short(label: str) -> str:
    text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", printable(" ".join(label.split()))) or "–"
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
