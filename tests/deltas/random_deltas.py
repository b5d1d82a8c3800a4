"""Seeded random deltas, and their slow reference: a model whose weights really changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.deltas.linear import linear_shape, linear_weight


def random_part(d_out: int, d_in: int, rank: int, seed: int = 0) -> LowRank:
    """B ~ N(0, 1), A ~ N(0, 0.01), float32: strong enough to move a tiny model's logits by several units."""
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(d_out, rank, generator=generator)
    return LowRank(B, 0.1 * torch.randn(rank, d_in, generator=generator))


def random_delta(model: nn.Module, ranks: Mapping[str, int]) -> Delta:
    """A delta with the given rank for each named module of `model`."""
    shapes = {name: linear_shape(model.get_submodule(name)) for name in ranks}
    return Delta({name: random_part(*shapes[name], ranks[name], seed) for seed, name in enumerate(ranks)})


def merged(model: nn.Module, delta: Delta) -> nn.Module:
    """A copy of `model` with W + ΔW for weights, in the weights' dtype."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, part in delta.parts.items():
            weight = linear_weight(changed.get_submodule(name))
            weight.add_((part.B.double() @ part.A.double()).to(weight.dtype))
    return changed


def logits(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary] of one prompt."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return found
