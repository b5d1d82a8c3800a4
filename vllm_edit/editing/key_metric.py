"""The metric in which a closed-form solver compares keys: by default C⁻¹ of a second moment."""

from __future__ import annotations

from typing import Protocol

import torch


class Metric(Protocol):
    """A symmetric positive (semi-)definite matrix M [d_in, d_in]; the solver's formulas read C⁻¹ = M."""

    def whiten(self, keys: torch.Tensor) -> torch.Tensor:
        """M k for each row of keys [n, d_in]: [n, d_in] float64 on the CPU."""
        ...
