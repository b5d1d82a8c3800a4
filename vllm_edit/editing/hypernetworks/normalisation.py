"""Running normalisation of token vectors: Welford's mean and variance of each feature, frozen outside training."""

from __future__ import annotations

import torch
from torch import nn


class Normalisation(nn.Module):
    """x̂ = (x − μ) / σ per feature (MEND, arXiv 2110.11309, §3.2), with μ and σ over all vectors given to `update`.

    With fewer than two vectors, the output equals the input. A feature without variance in these vectors becomes zero,
    whatever its value is later.
    """

    count: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))  # Σ (x − μ)²

    @torch.no_grad()
    def update(self, vectors: torch.Tensor) -> None:
        """Add vectors [k, width] to the statistics, in place. Does nothing outside training mode.

        This is Welford's update for a block of k vectors (Chan, Golub, LeVeque 1983); the order of the blocks does not
        matter.
        """
        if not self.training or len(vectors) == 0:
            return
        block = vectors.double()
        mean = block.mean(0)
        difference, total = mean - self.mean, self.count + len(block)
        self.squares += (block - mean).square().sum(0) + difference.square() * self.count * len(block) / total
        self.mean += difference * len(block) / total
        self.count += len(block)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors [..., width] normalised, in their own precision."""
        if self.count < 2:
            return vectors
        return self.scaled(vectors - self.mean.to(vectors.dtype))

    def scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        """x / σ: vectors [..., width] divided by the deviation, but not centred."""
        if self.count < 2:
            return vectors
        deviation = (self.squares / (self.count - 1)).sqrt()
        # Relative to the mean deviation: gradients are small, so an absolute constant could dominate.
        floor = 1e-6 * deviation.mean().clamp_min(torch.finfo(torch.float32).tiny)
        divisor = torch.where(deviation > floor, deviation + floor, torch.inf)
        return vectors / divisor.to(vectors.dtype)
