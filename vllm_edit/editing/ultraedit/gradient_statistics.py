"""Statistics of token gradients, by which UltraEdit normalises: mean and variance of inputs and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from vllm_edit.digest import digest_tensors
from vllm_edit.editing.hypernetworks.gradients import TokenGradients
from vllm_edit.editing.hypernetworks.normalisation import Normalisation
from vllm_edit.errors import Incompatible

_SIDES = ("inputs", "outputs")


@dataclass(frozen=True, eq=False)
class MatrixStatistics:
    """Mean and variance of each feature of one matrix's inputs u [d_in] and gradients δ [d_out]."""

    inputs: Normalisation
    outputs: Normalisation

    @classmethod
    def of(cls, gradients: TokenGradients) -> Self:
        """The statistics of all counted tokens."""
        made = []
        for vectors in (gradients.inputs, gradients.outputs):
            normalisation = Normalisation(vectors.shape[-1]).to(vectors.device)
            normalisation.update(vectors[gradients.counted])
            made.append(normalisation.eval())
        return cls(*made)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return len(self.outputs.mean), len(self.inputs.mean)

    @property
    def count(self) -> int:
        """Number of tokens."""
        return int(self.inputs.count)

    @property
    def input_energy(self) -> float:
        """Mean ‖u‖² of the tokens."""
        return float(self.inputs.mean.square().sum() + self.inputs.squares.sum() / self.inputs.count)


@dataclass(frozen=True, eq=False)
class GradientStatistics:
    """Edited module → its statistics, in the site's order."""

    by_module: Mapping[str, MatrixStatistics]

    @classmethod
    def of(cls, gradients: Mapping[str, TokenGradients]) -> Self:
        """The statistics of the token gradients of several edits.

        Args:
            gradients: module → token gradients, in the site's order.
        """
        return cls({name: MatrixStatistics.of(found) for name, found in gradients.items()})

    @property
    def count(self) -> int:
        """Number of tokens of each matrix."""
        return next(iter(self.by_module.values())).count

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the store contains, and `digest` identifies, on the CPU."""
        return {
            f"{module}.{side}.{name}": tensor.detach().cpu().contiguous()
            for module, own in self.by_module.items()
            for side in _SIDES
            for name, tensor in getattr(own, side).state_dict().items()
        }

    @classmethod
    def from_tensors(cls, modules: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> Self:
        """The statistics of these modules from their `tensors()`.

        Raises:
            Incompatible: the tensors are not the statistics of these modules.
        """
        found = {}
        for module in modules:
            sides = []
            for side in _SIDES:
                try:
                    own = {name: tensors[f"{module}.{side}.{name}"] for name in ("count", "mean", "squares")}
                except KeyError:
                    raise Incompatible(
                        f"expected gradient statistics of {module}, got tensors without them: make a store for this "
                        "site (vllm-edit store init --method ultraedit)"
                    ) from None
                normalisation = Normalisation(len(own["mean"]))
                normalisation.load_state_dict(own)
                sides.append(normalisation.eval())
            found[module] = MatrixStatistics(*sides)
        return cls(found)

    @property
    def digest(self) -> str:
        return digest_tensors(self.tensors())

    def to(self, device: torch.device) -> None:
        """Move the statistics to a device, in place."""
        for own in self.by_module.values():
            own.inputs.to(device)
            own.outputs.to(device)
