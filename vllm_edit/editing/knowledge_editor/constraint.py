"""KnowledgeEditor's objective: a bound on what must stay, by a Lagrange multiplier (arXiv 2104.08164, eq. 2–3).

    minimise NLL   subject to   KL ≤ m        as        min_φ max_{λ ≥ 0}  NLL + λ (KL − m)

The network descends along NLL + λ KL; λ ascends along KL − m. When a validation keeps the bound, the bound is annealed
to a tighter one (§4.2: m is multiplied by 0.8).

Departures: λ ascends in its logarithm along the relative violation KL/m − 1, so that its rate has no unit and λ stays
positive; a violation counts between −1 and 4, because the KL of a few rows has outliers. The loss is divided by 1 + λ,
so that the clip of the gradient means the same for every λ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_MOST_VIOLATED = 4.0
_SMALLEST, _GREATEST = 1e-2, 1e3


class Constraint:
    """An `Objective` whose weights are (1, λ) / (1 + λ).

    multiplier: λ. bound: m.
    """

    def __init__(self, multiplier: float, rate: float, bound: float, least_bound: float, anneal: float) -> None:
        """Begin a training.

        Args:
            multiplier: λ in the first step.
            rate: ascent of log λ in one step for a violation of 1.
            bound: m in the first step.
            least_bound: m does not become smaller.
            anneal: factor of m after a validation that keeps it.
        """
        self.multiplier, self.bound = multiplier, bound
        self._first, self._rate, self._least_bound, self._anneal = multiplier, rate, least_bound, anneal

    @property
    def weights(self) -> tuple[float, float]:
        return 1 / (1 + self.multiplier), self.multiplier / (1 + self.multiplier)

    def loss(self, nll: float, divergence: float) -> float:
        """The Lagrangian at the first multiplier, so that all validations are compared by one number."""
        return (nll + self._first * divergence) / (1 + self._first)

    def stepped(self, divergence: float) -> None:
        if not math.isfinite(divergence):
            return
        violation = min(divergence / self.bound - 1, _MOST_VIOLATED)
        self.multiplier = min(max(self.multiplier * math.exp(self._rate * violation), _SMALLEST), _GREATEST)

    def validated(self, divergence: float) -> None:
        if divergence <= self.bound:
            self.bound = max(self._least_bound, self._anneal * self.bound)

    def state(self) -> dict[str, float]:
        return {"multiplier": self.multiplier, "bound": self.bound}

    def load(self, state: Mapping[str, float]) -> None:
        self.multiplier, self.bound = state["multiplier"], state["bound"]
