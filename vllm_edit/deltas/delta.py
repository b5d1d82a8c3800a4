"""Delta: a low-rank update in memory. ΔW = B·A per module, always in `nn.Linear` orientation [d_out, d_in]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vllm_edit.errors import EditError


@dataclass(frozen=True)
class LowRank:
    """One module's update ΔW = B·A.

    B: [d_out, r], A: [r, d_in], both float32 or float64 on the CPU; cast only when they leave (`save_peft`).
    """

    B: torch.Tensor
    A: torch.Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise EditError(
                f"a delta needs B [d_out, r] and A [r, d_in]; got B {tuple(self.B.shape)}, A {tuple(self.A.shape)}"
            )

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def dense(self) -> torch.Tensor:
        """ΔW [d_out, d_in], for tests and small models."""
        return self.B @ self.A


@dataclass(frozen=True)
class Delta:
    """A low-rank update of a model: module name → `LowRank`."""

    parts: Mapping[str, LowRank]

    @property
    def rank(self) -> int:
        return max((part.rank for part in self.parts.values()), default=0)
