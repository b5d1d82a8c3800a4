"""A module's forward pass under an update of its weights: W does not change, a hook adds the update's part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vllm_edit.errors import EditError


@contextmanager
def low_rank_forward(module: nn.Module, A: torch.Tensor, B: torch.Tensor) -> Iterator[None]:
    """Within the block the module computes W x + b + B (A x) at every token, differentiable in A and B, as served LoRA.

    The product is computed in A's precision and cast to the output's.

    Args:
        module: the linear layer.
        A: [r, d_in], shared by the batch, or [rows, r, d_in] with one factor for each row of the batch.
        B: [d_out, r], shared by the batch, or [rows, d_out, r], independently of A.

    Raises:
        EditError: A and B do not fit each other; or, in the forward pass, the module or the batch.
    """
    if A.ndim not in (2, 3) or B.ndim not in (2, 3) or A.shape[-2] != B.shape[-1]:
        raise EditError(
            "expected A [r, d_in] or [rows, r, d_in] and B [d_out, r] or [rows, d_out, r]; "
            f"got A {tuple(A.shape)}, B {tuple(B.shape)}"
        )
    counts = {factor.shape[0] for factor in (A, B) if factor.ndim == 3}
    if len(counts) > 1:
        raise EditError(f"A and B are for different numbers of rows: {A.shape[0]} and {B.shape[0]}")
    rows = counts.pop() if counts else None

    def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = args[0]
        if x.shape[-1] != A.shape[-1] or output.shape[-1] != B.shape[-2]:
            raise EditError(
                f"the module maps {x.shape[-1]} → {output.shape[-1]}; the update maps {A.shape[-1]} → {B.shape[-2]}"
            )
        if rows is not None and x.ndim == 2 and x.shape[0] % rows == 0:
            x = x.reshape(rows, -1, x.shape[-1])  # [batch·seq, d_in] → [batch, seq, d_in]
        if rows is not None and (x.ndim != 3 or x.shape[0] != rows):
            raise EditError(f"the update is for {rows} rows; the batch's input has shape {tuple(x.shape)}")
        update = (x.to(A.dtype) @ A.mT) @ B.to(A.dtype).mT  # [batch, seq, d_out]
        return output + update.reshape(output.shape).to(output.dtype)

    with module.register_forward_hook(hook):
        yield


@contextmanager
def routed_forward(module: nn.Module, A: torch.Tensor, B: torch.Tensor, routes: torch.Tensor) -> Iterator[None]:
    """Within the block the module computes W x + b + B_g (A_g x), one rank-one update per token, differentiable in B.

    Args:
        module: the linear layer.
        A: [g, d_in].
        B: [g, d_out].
        routes: [batch, seq], the index g of each token's update; -1 for none.
    """
    chosen = routes[..., None] == torch.arange(len(A), device=routes.device)  # [batch, seq, g]

    def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x = args[0].reshape(*routes.shape, -1)  # some families flatten batch and sequence
        update: torch.Tensor = ((x.to(A.dtype) @ A.mT) * chosen) @ B.to(A.dtype)  # [batch, seq, d_out]
        return output + update.reshape(output.shape).to(output.dtype)

    with module.register_forward_hook(hook):
        yield


@contextmanager
def dense_forward(module: nn.Module, update: torch.Tensor, scale: float = 1.0) -> Iterator[None]:
    """Within the block the module computes W x + b + scale · ΔW x, differentiable in ΔW = `update` [d_out, d_in].

    The product is computed in the update's precision and cast to the output's.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = args[0]
        return output + scale * (x.to(update.dtype) @ update.mT).to(output.dtype)

    with module.register_forward_hook(hook):
        yield
