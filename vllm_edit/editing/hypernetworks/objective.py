"""Objective of a hypernetwork's training: the weights of its two losses in every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Objective(Protocol):
    """Weights of the mean NLL of new answers, and of the KL on what must stay. Weights may follow the training."""

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of (NLL, KL) in the next step."""
        ...

    def loss(self, nll: float, divergence: float) -> float:
        """The loss that compares validations; it must not follow the training."""
        ...

    def stepped(self, divergence: float) -> None:
        """Take the KL of a training step, in place."""
        ...

    def validated(self, divergence: float) -> None:
        """Take the KL of a validation, in place."""
        ...

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold."""
        ...

    def load(self, state: Mapping[str, float]) -> None:
        """Continue from the `state` of a checkpoint, in place."""
        ...
