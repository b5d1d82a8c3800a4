"""Fidelity: how much of a delta survives a cast, unmerged (as vLLM serves it) and merged into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.low_rank import LowRank, stack
from vllm_edit.errors import Incompatible


@dataclass(frozen=True)
class ModuleFidelity:
    """Relative errors in the Frobenius norm; `merged` is None where no weight was given."""

    factors: float
    merged: float | None


@dataclass(frozen=True)
class Fidelity:
    """The error that a cast to `dtype` makes in each module's ΔW."""

    dtype: torch.dtype
    modules: Mapping[str, ModuleFidelity]

    @property
    def factors(self) -> float:
        """The worst module's error when the factors are cast and stay unmerged."""
        return max((module.factors for module in self.modules.values()), default=0.0)

    @property
    def merged(self) -> float | None:
        """The worst module's error when merged into weights of the dtype; None where no weight was given."""
        return max((module.merged for module in self.modules.values() if module.merged is not None), default=None)

    def summary(self) -> dict[str, Any]:
        """JSON-able: dtype, worst errors, and the errors per module."""
        modules = {name: {"factors": m.factors, "merged": m.merged} for name, m in self.modules.items()}
        name = str(self.dtype).removeprefix("torch.")
        return {"dtype": name, "factors": self.factors, "merged": self.merged, "modules": modules}


def fidelity(delta: Delta, dtype: torch.dtype, weights: Mapping[str, torch.Tensor] | None = None) -> Fidelity:
    """Relative error of ΔW after a cast, per module.

    Unmerged: ‖B̃Ã − ΔW‖ / ‖ΔW‖ with the adapter's factors B̃, Ã in `dtype`. Merged: ‖(cast(W̃ + ΔW) − W̃) − ΔW‖ / ‖ΔW‖
    with W̃ = cast(W): the edit is added to weights in `dtype`, whose rounding steps can be as large as a small edit's
    entries.

    Args:
        delta: the update.
        dtype: the dtype of the served adapter and, for the merged error, of the weights.
        weights: module → W [d_out, d_in] of the base model, for modules whose merged error is wanted.

    Raises:
        EditError: `dtype` cannot hold the factors.
        Incompatible: a weight's shape is not the delta's.
    """
    reports: dict[str, ModuleFidelity] = {}
    for name, part in delta.parts.items():
        B, A = part.cast(dtype)
        error = stack([LowRank(B.double(), A.double()), LowRank(-part.B, part.A)]).norm()
        size = part.norm() or 1.0  # a zero update survives every cast: 0 / 1
        merged = None
        if weights is not None and name in weights:
            merged = _merge_error(name, part, weights[name], dtype) / size
        reports[name] = ModuleFidelity(error / size, merged)
    return Fidelity(dtype, reports)


def _merge_error(name: str, part: LowRank, weight: torch.Tensor, dtype: torch.dtype) -> float:
    """‖(cast(W̃ + ΔW) − W̃) − ΔW‖ with W̃ = cast(W), all in float64 except the casts."""
    if tuple(weight.shape) != part.shape:
        raise Incompatible(f"{name}: expected a weight [d_out, d_in] = {part.shape}, got {tuple(weight.shape)}")
    update = part.B.double() @ part.A.double()
    served = weight.to("cpu", dtype).double()
    merged = (served + update).to(dtype).double() - served
    return float(torch.linalg.matrix_norm(merged - update))
