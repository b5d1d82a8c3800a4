"""A metric that clients report for an answer: its name, its range, and the better direction."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from vllm_edit.errors import EditError
from vllm_edit.names import shown

Better = Literal["higher", "lower"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_NUMBER = r"-?\d+(?:\.\d+)?"
_SPELLED = re.compile(rf"(?P<name>[^:]+)(?::(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER}))?(?::(?P<better>higher|lower))?")


@dataclass(frozen=True)
class Metric:
    """A metric with values in [low, high]. Without a range, no test could guarantee its error rate at every n."""

    name: str
    low: float = 0.0
    high: float = 1.0
    better: Better = "higher"

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise EditError(f"expected a metric's name of lower-case letters, digits and '_'; got {shown(self.name)}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise EditError(f"metric {self.name}: expected a range like 0..1; got {self.low:g}..{self.high:g}")
        if self.better not in get_args(Better):
            raise EditError(f"metric {self.name}: expected higher or lower to be better; got {shown(self.better)}")

    def check(self, value: float) -> float:
        """Return `value` as a float; raise `EditError` if it is out of range."""
        if not math.isfinite(value) or not self.low <= value <= self.high:
            raise EditError(f"metric {self.name} has values in {self.low:g}..{self.high:g}; got {value!r}")
        return float(value)


def parse_metric(text: str) -> Metric:
    """Parse a metric: `solved` (0 to 1, higher is better), `rating:1..5`, `seconds_to_answer:0..60:lower`."""
    match = _SPELLED.fullmatch(text)
    if match is None:
        raise EditError(f"expected a metric like solved, rating:1..5 or retries:0..10:lower; got {shown(text)}")
    better: Better = "lower" if match["better"] == "lower" else "higher"
    return Metric(match["name"], float(match["low"] or 0), float(match["high"] or 1), better)
