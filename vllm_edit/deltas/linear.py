"""Linear layers of a model: their weights in one orientation."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Conv1D

from vllm_edit.errors import EditError


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer; by module type, since a square weight does not show its orientation."""
    d_out, d_in = linear_weight(module).shape
    return d_out, d_in


def linear_weight(module: nn.Module) -> torch.Tensor:
    """The layer's own weight as [d_out, d_in]: a view, transposed for Conv1D (GPT-2 stores [d_in, d_out]).

    Raises:
        EditError: the module is not a linear layer.
    """
    if isinstance(module, nn.Linear):
        return module.weight
    if isinstance(module, Conv1D):
        weight: torch.Tensor = module.weight
        return weight.mT
    raise EditError(f"expected a linear layer (nn.Linear or Conv1D); got {type(module).__name__}")
