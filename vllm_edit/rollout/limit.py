"""A limit of a rollout: what treatment may not do, and what a server does when it does."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vllm_edit.errors import EditError
from vllm_edit.names import shown
from vllm_edit.rollout.metric import Metric

Action = Literal["warn", "pause", "kill"]
ACTIONS: tuple[Action, ...] = get_args(Action)
"""From the mildest to the strictest."""

Measure = Literal["errors", "cut", "slower", "locality"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
"""What servers measure themselves, each 0 or 1; any other name is a metric that clients report.

    errors     the answer failed: the arm could not be applied, status 500 or higher, or an interrupted stream
    cut        the answer ended at its maximum number of tokens
    slower     the answer took longer than `seconds`, or failed. Latency itself has no maximum, and a mean without a
               range has no test that is valid at every number of users
    locality   the answer to a locality probe of the treatment differs from the base's answer
"""

_DECIMALS = 7
_NUMBER = rf"\d{{1,9}}(?:\.\d{{1,{_DECIMALS}}})?"
_SPELLED = re.compile(
    rf"(?P<name>[a-z][a-z0-9_]{{0,62}})(?::(?P<seconds>{_NUMBER})(?P<unit>ms|s|m))?"
    rf"(?:\+(?P<margin>{_NUMBER})(?P<percent>%)?)?=(?P<action>[a-z]+)"
)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Limit:
    """A limit: treatment is worse than control by more than `margin`.

    Attributes:
        name: One of `MEASURES`, or one of the rollout's metrics.
        action: What is done when the limit is exceeded.
        margin: By how much treatment may be worse, in the metric's units; 0.01 is one percentage point of a share. For
            `locality` it is the share of probes whose answer may differ from the base's.
        seconds: For `slower`, the duration that an answer may take.
    """

    name: str
    action: Action
    margin: float = 0.0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise EditError(f"limit {self.name}: expected {', '.join(ACTIONS)}; got {shown(self.action)}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise EditError(f"limit {self.name}: expected a margin of 0 or more; got {self.margin:g}")
        if (self.name == "slower") != (self.seconds is not None):
            raise EditError(
                f"limit {self.name}: only slower has a duration, and it needs one; expected a limit like slower:2s=warn"
            )
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise EditError(f"limit slower: expected a duration of more than 0; got {self.seconds:g} s")
        if self.name == "locality" and not self.margin:
            raise EditError(
                "limit locality: expected the share of answers that may differ from the base's, like locality+5%=kill"
            )

    def __str__(self) -> str:
        """The limit as a person writes it."""
        seconds = "" if self.seconds is None else f":{_written(self.seconds)}s"
        margin = f"+{_written(self.margin)}" if self.margin else ""
        return f"{self.name}{seconds}{margin}={self.action}"

    @property
    def measured(self) -> bool:
        """True if servers measure it, false for a metric that clients report."""
        return self.name in MEASURES

    def metric(self, metrics: Sequence[Metric]) -> Metric:
        """Return what the limit is about, with its range; `KeyError` if it is none of `metrics`."""
        if self.measured:
            return Metric(self.name, better="lower")
        return {metric.name: metric for metric in metrics}[self.name]

    def problems(self, metrics: Sequence[Metric]) -> list[str]:
        """Return what keeps a rollout with these metrics from having the limit, one line each."""
        names = [metric.name for metric in metrics]
        if self.measured and self.name in names:
            return [f"limit {self}: metric {self.name} has the name of a server's own measure; rename the metric"]
        if not self.measured and self.name not in names:
            return [
                f"limit {self}: expected {', '.join((*MEASURES, *names))}; got {shown(self.name)}; a metric of clients "
                f"is given with --metric {self.name}"
            ]
        metric = self.metric(metrics)
        if self.margin >= metric.high - metric.low:
            return [f"limit {self}: expected a margin below {metric.high - metric.low:g}, or it never acts"]
        return []


def _written(number: float) -> str:
    return f"{number:.{_DECIMALS}f}".rstrip("0").rstrip(".")


def parse_limit(text: str) -> Limit:
    """Parse a limit: `errors=kill`, `errors+1%=kill`, `slower:2s=warn`, `solved+0.05=pause`, `locality+5%=kill`."""
    match = _SPELLED.fullmatch(text.replace(" ", ""))
    if match is None or match["action"] not in ACTIONS:
        raise EditError(
            "expected a limit like errors=kill, errors+1%=kill, slower:2s=warn, locality+5%=kill or solved+0.05=pause, "
            f"which does {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}; got {shown(text)}"
        )
    action = next(action for action in ACTIONS if action == match["action"])
    margin = round(float(match["margin"] or 0) / (100 if match["percent"] else 1), _DECIMALS)
    seconds = None if match["seconds"] is None else round(float(match["seconds"]) * _SECONDS[match["unit"]], _DECIMALS)
    return Limit(match["name"], action, margin, seconds)
