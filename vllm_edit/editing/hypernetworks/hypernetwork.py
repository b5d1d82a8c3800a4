"""Hypernetwork: what every trained network that makes updates from edits has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import torch
from torch import nn

from vllm_edit.digest import digest_tensors
from vllm_edit.edit import Edit
from vllm_edit.errors import Incompatible
from vllm_edit.models.base import Base
from vllm_edit.models.rows import Row

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module → (A [n, r, d_in], B [n, d_out, r]) of n edits. Components with a zero row of A are padding."""

Inputs = TypeVar("Inputs")


class Hypernetwork(nn.Module, Generic[Inputs]):
    """A network that makes a low-rank update of every edited matrix from an edit. `Inputs` is what it reads."""

    shapes: dict[str, tuple[int, int]]
    """Edited module → (d_out, d_in), in the site's order."""

    @property
    def modules_edited(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @abstractmethod
    def inputs(self, base: Base, edits: Sequence[Edit], rows: Sequence[Row], tokens: int) -> Inputs:
        """What the network reads of n edits. The base is not changed.

        Args:
            base: the model that is edited.
            edits: n edits.
            rows: their prompts, as plain text, with the new answers.
            tokens: maximum number of tokens in one forward pass, padding included.
        """

    @abstractmethod
    def observe(self, inputs: Inputs) -> None:
        """Add the inputs to the running statistics, in place. Does nothing outside training mode."""

    @abstractmethod
    def forward(self, inputs: Inputs) -> Factors:
        """The factors of every edit's update ΔW = B A."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> Self:
        """The network of these tensors for the matrices `names`, in eval mode.

        Raises:
            Incompatible: the tensors are not a network's, or its number of matrices is different.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that identify the network, on the CPU; `from_tensors` reads them."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}

    @property
    def digest(self) -> str:
        return digest_tensors(self.tensors())

    def filled(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The network with these tensors, in place, in eval mode.

        Raises:
            Incompatible: the tensors have other names or shapes.
        """
        try:
            self.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise Incompatible(f"the tensors are not those of a network: {error}") from error
        return self.eval()


def shapes_of(names: Sequence[str], tensors: Mapping[str, torch.Tensor], method: str) -> dict[str, tuple[int, int]]:
    """The shapes of the matrices `names`, from the tensor `widths` [matrices, 2] that every network has.

    Raises:
        Incompatible: the network is for another number of matrices; the message names the `method`.
    """
    widths = tensors.get("widths", torch.empty(0, 2))
    if len(widths) != len(names):
        raise Incompatible(
            f"expected a network for the {len(names)} matrices of the site, got a network for {len(widths)}; train "
            f"a network for this site, or make a store with this network (vllm-edit store init --method {method})"
        )
    return {name: (d_out, d_in) for name, (d_out, d_in) in zip(names, widths.tolist(), strict=True)}


ParameterGroups = list[dict[str, Any]]
"""Adam's parameter groups: `params` and `lr`, the rate at the first step."""
