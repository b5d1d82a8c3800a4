"""The gradient of an edit as token pairs. For a linear layer it is a sum of outer products, which is never formed.

    ∇_W NLL(target | prompt) = Σ_t δ_t u_tᵀ,      u_t: the layer's input at token t,  δ_t: ∂NLL / ∂(its output at t)

(MEND, arXiv 2110.11309, §3.1, eq. 2: "rank-1 structure of the gradient".) Hooks measure the pairs; no parameter needs
a gradient, and the base is not changed. The backward pass ends at the first of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import Batch, Row, answer_scores, batches, run_batch

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM


@dataclass(frozen=True)
class TokenGradients:
    """One linear layer's gradient for n edits, token by token, float32.

    inputs: u [n, T, d_in].
    outputs: δ [n, T, d_out].
    counted: [n, T] bool; False at padding and at tokens that the loss does not depend on. There, u and δ are zero.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    counted: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor, outputs: torch.Tensor) -> TokenGradients:
        counted = (inputs != 0).any(-1) & (outputs != 0).any(-1)
        mask = counted[..., None]
        return cls(inputs * mask, outputs * mask, counted)

    def dense(self) -> torch.Tensor:
        """The full gradient ∇_W of each edit, [n, d_out, d_in]; for tests and small models."""
        return self.outputs.mT @ self.inputs


def token_gradients(
    model: CausalLM, modules: Sequence[str], rows: Sequence[Row], tokens: int
) -> dict[str, TokenGradients]:
    """Every module's token gradients of the mean NLL of each row's answer. Each row is a separate edit.

    Args:
        rows: n prompts with answers.
        tokens: maximum number of tokens in one forward pass, padding included.

    Returns:
        Module name → gradients in the order of the rows; T is the length of the longest row.
    """
    length = max(row.length for row in rows)
    shapes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for batch in batches(model, rows, range(len(rows)), tokens):
        for name, (inputs, outputs) in _of_batch(model, modules, batch).items():
            if name not in shapes:
                shapes[name] = tuple(x.new_zeros(len(rows), length, x.shape[-1]) for x in (inputs, outputs))  # type: ignore[assignment]
            for whole, part in zip(shapes[name], (inputs, outputs), strict=True):
                whole[batch.rows, : part.shape[1]] = part
    return {name: TokenGradients.of(*shapes[name]) for name in modules}


def _of_batch(model: CausalLM, modules: Sequence[str], batch: Batch) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module → (u [b, seq, d_in], δ [b, seq, d_out]), zero at padding."""
    inputs: dict[str, torch.Tensor] = {}
    shifts: dict[str, torch.Tensor] = {}

    def hook_of(name: str) -> Callable[..., torch.Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            inputs[name] = args[0].detach()
            # The gradient with respect to this added zero equals the gradient with respect to the output.
            shifts[name] = torch.zeros_like(output, requires_grad=True)
            return output + shifts[name]

        return hook

    with frozen(model), torch.enable_grad(), ExitStack() as stack:
        for name in modules:
            stack.callback(find_module(model, name).register_forward_hook(hook_of(name)).remove)
        nll, _ = answer_scores(run_batch(model, batch), batch)
        outputs = torch.autograd.grad(nll.sum(), [shifts[name] for name in modules])
    real, shape = batch.attention_mask[..., None].bool(), (*batch.input_ids.shape, -1)
    # Some families flatten batch and sequence before the MLP.
    return {
        name: (inputs[name].reshape(shape).float() * real, output.reshape(shape).float() * real)
        for name, output in zip(modules, outputs, strict=True)
    }
