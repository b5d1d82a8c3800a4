"""MEND's network: it transforms the gradient of an edit into an update that makes the edit and preserves the rest.

For each edited matrix m with token pairs (u_t, δ_t) (MEND, arXiv 2110.11309, §3.2, Algorithm 2):

    (ũ_t, δ̃_t) = g([û_t; δ̂_t]; m),      ΔW_m = − α_m Σ_t δ̃_t ũ_tᵀ

so the update is low-rank by construction: the rows of A are ũ_t, the columns of B are − α_m δ̃_t. The minus sign is in
the paper; the reference code adds, which increases the loss until the network has learned to flip the sign.

All matrices of one *shape* share one g, with a scale s_m and a shift t_m per matrix. Each layer of g is
y = x + max(0, s_m ⊙ (U V x + b) + t_m); the last layer has no max. U starts at zero, so g starts as the identity.

Departures: û and δ̂ are normalised per matrix, not per shape, because layers differ in scale. V ~ N(0, 1/width), so
that hidden units and features have the same scale at any width. α_m is in units of the matrix's root mean square
weight, so that its default fits every model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import nn

from vllm_edit.deltas.linear import linear_shape, linear_weight
from vllm_edit.edit import Edit
from vllm_edit.editing.hypernetworks.gradients import TokenGradients, token_gradients
from vllm_edit.editing.hypernetworks.hypernetwork import (
    Factors,
    Hypernetwork,
    ParameterGroups,
    shapes_of,
)
from vllm_edit.editing.hypernetworks.normalisation import Normalisation
from vllm_edit.editing.mend.mend_settings import MendTrainingSettings
from vllm_edit.errors import Incompatible
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Row


class LowRankLayer(nn.Module):
    """y = x + s_m ⊙ (U V x + b) + t_m; if `rectified`, negative values of the added part become zero."""

    def __init__(self, width: int, rank: int, matrices: int, *, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.V = nn.Parameter(torch.randn(rank, width) * width**-0.5)
        self.U = nn.Parameter(torch.zeros(width, rank))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(matrices, width))
        self.shift = nn.Parameter(torch.zeros(matrices, width))

    def forward(self, x: torch.Tensor, matrix: int) -> torch.Tensor:
        """x: [..., width]; `matrix` is the index of the edited matrix among those of its shape."""
        added = self.scale[matrix] * ((x @ self.V.mT) @ self.U.mT + self.bias) + self.shift[matrix]
        # All values start at exactly zero, where relu has no gradient but clamp does.
        return x + (added.clamp_min(0) if self.rectified else added)


class GradientTransform(nn.Module):
    """g for the matrices of one shape: (u, δ) → (ũ, δ̃)."""

    def __init__(self, shape: tuple[int, int], matrices: int, rank: int, layers: int = 2) -> None:
        super().__init__()
        self.d_out, self.d_in = shape
        width = self.d_out + self.d_in
        self.inputs = nn.ModuleList(Normalisation(self.d_in) for _ in range(matrices))
        self.outputs = nn.ModuleList(Normalisation(self.d_out) for _ in range(matrices))
        self.layers = nn.ModuleList(
            LowRankLayer(width, rank, matrices, rectified=number < layers - 1) for number in range(layers)
        )

    def observe(self, gradients: TokenGradients, matrix: int) -> None:
        """Add the counted tokens to the running statistics, in place. Does nothing outside training mode."""
        self.inputs[matrix].update(gradients.inputs[gradients.counted])  # type: ignore[operator]
        self.outputs[matrix].update(gradients.outputs[gradients.counted])  # type: ignore[operator]

    def forward(self, gradients: TokenGradients, matrix: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ũ [n, T, d_in], δ̃ [n, T, d_out]), zero at tokens that are not counted."""
        x = torch.cat([self.inputs[matrix](gradients.inputs), self.outputs[matrix](gradients.outputs)], dim=-1)
        for layer in self.layers:
            x = layer(x, matrix)
        x = x * gradients.counted[..., None]
        return x[..., : self.d_in], x[..., self.d_in :]


class MendNetwork(Hypernetwork[Mapping[str, TokenGradients]]):
    """A gradient transform for every matrix shape and an α for every matrix."""

    unit: torch.Tensor
    widths: torch.Tensor

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], rank: int, alpha: float = 1.0, layers: int = 2, seed: int = 0
    ) -> None:
        """Make an untrained network.

        Args:
            shapes: edited module → (d_out, d_in), in the site's order.
            rank: rank of the layers of g.
            alpha: initial value of every α_m.
            layers: number of layers of g.
            seed: random seed of the initial values.
        """
        super().__init__()
        self.shapes = dict(shapes)
        grouped: dict[str, list[str]] = {}
        for name, shape in self.shapes.items():
            grouped.setdefault(_key(shape), []).append(name)
        self._places = {name: (key, number) for key, names in grouped.items() for number, name in enumerate(names)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transforms = nn.ModuleDict(
                {
                    key: GradientTransform(self.shapes[names[0]], len(names), rank, layers)
                    for key, names in grouped.items()
                }
            )
        self.alpha = nn.Parameter(torch.full((len(self.shapes),), float(alpha)))
        self.register_buffer("unit", torch.ones(len(self.shapes)))
        # [matrices, 2]: stores the shapes of the matrices with the tensors.
        self.register_buffer("widths", torch.tensor(list(self.shapes.values())))

    def inputs(self, base: Base, edits: Sequence[Edit], rows: Sequence[Row], tokens: int) -> dict[str, TokenGradients]:
        """The gradient of every matrix."""
        return token_gradients(base.model, self.modules_edited, rows, tokens)

    def observe(self, inputs: Mapping[str, TokenGradients]) -> None:
        for name, found in inputs.items():
            key, number = self._places[name]
            self.transforms[key].observe(found, number)  # type: ignore[operator]

    def forward(self, inputs: Mapping[str, TokenGradients]) -> Factors:
        """A = ũ [n, T, d_in] and B = − α δ̃ᵀ [n, d_out, T] of every module."""
        factors: Factors = {}
        for place, name in enumerate(self.shapes):
            key, number = self._places[name]
            A, outputs = self.transforms[key](inputs[name], number)
            factors[name] = A, -self.alpha[place] * self.unit[place] * outputs.mT
        return factors

    @classmethod
    def from_tensors(cls, names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> Self:
        shapes = shapes_of(names, tensors, "mend")
        V = {name: tensor for name, tensor in tensors.items() if name.endswith(".V")}
        if not V:
            raise Incompatible("the tensors are not those of a network of MEND: none is named V")
        layers = 1 + max(int(name.split(".")[3]) for name in V)
        return cls(shapes, len(next(iter(V.values()))), layers=layers).filled(tensors)


def _key(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def new_network(base: Base, modules: Sequence[str], settings: MendTrainingSettings) -> MendNetwork:
    """An untrained network for the matrices `modules` of `base`, on its device."""
    found = [find_module(base.model, name) for name in modules]
    shapes = dict(zip(modules, map(linear_shape, found), strict=True))
    network = MendNetwork(shapes, settings.rank, settings.alpha, seed=settings.seed)
    weights = [linear_weight(module).detach().float() for module in found]
    network.unit.copy_(torch.stack([weight.square().mean().sqrt() for weight in weights]))
    return network.to(base.device)


def parameter_groups(network: MendNetwork, settings: MendTrainingSettings) -> ParameterGroups:
    """α has its own group and rate; every parameter is in exactly one group.

    (In the reference code, the main optimiser also holds α and clears its gradient before α's own optimiser steps, so
    that α is trained at the main rate.)
    """
    others = [parameter for name, parameter in network.named_parameters() if name != "alpha"]
    return [{"params": others, "lr": settings.rate}, {"params": [network.alpha], "lr": settings.alpha_rate}]
