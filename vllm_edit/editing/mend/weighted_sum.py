"""MEND's objective: a sum of both losses with constant weights (arXiv 2110.11309, §3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WeightedSum:
    """L = c_edit · NLL + c_loc · KL, an `Objective`."""

    teach_weight: float
    keep_weight: float

    @property
    def weights(self) -> tuple[float, float]:
        return self.teach_weight, self.keep_weight

    def loss(self, nll: float, divergence: float) -> float:
        return self.teach_weight * nll + self.keep_weight * divergence

    def stepped(self, divergence: float) -> None:
        """Nothing follows the training."""

    def validated(self, divergence: float) -> None:
        """Nothing follows the training."""

    def state(self) -> dict[str, float]:
        return {}

    def load(self, state: Mapping[str, float]) -> None:
        """There is nothing to continue."""
