"""bfloat16 products in a float32 model, on processors that support them: two to four times as fast.

Weights and inputs are rounded to bfloat16 (8 bits of mantissa); sums are float32. That is precise enough for gradients
and for sampling text. Checks and stored results use the model's own precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import Conv1D

from vllm_edit.deltas.linear import linear_weight

_UNITS = ("amx_bf16", "avx512_bf16", "bf16")
"""torch's names of the bfloat16 units of x86 and ARM processors."""


@contextmanager
def fast_products(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context, the float32 linear layers on the CPU in `modules` multiply bfloat16 copies of their weights.

    Differentiable in the layers' inputs, not in their weights. Inputs, outputs and biases are float32, hooks run as
    usual, and the weights are not changed. Without bfloat16 units, and on a GPU, this has no effect.
    """
    layers = dict.fromkeys(layer for module in modules for layer in module.modules() if _is_slow(layer))
    copies: dict[int, torch.Tensor] = {}
    for layer in layers if has_units() else ():
        weight, bias = linear_weight(layer).detach(), getattr(layer, "bias", None)
        if weight.data_ptr() not in copies:  # tied layers share one copy
            copies[weight.data_ptr()] = weight.bfloat16().contiguous()
        layer.forward = partial(_product, copies[weight.data_ptr()], bias)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def has_units() -> bool:
    """True if this processor has bfloat16 units; without them, bfloat16 is far slower than float32."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older releases of torch
    return any(found.get(unit) for unit in _UNITS)


def _is_slow(module: nn.Module) -> bool:
    """True for a float32 linear layer on the CPU that computes only W x + b."""
    if type(module) not in (nn.Linear, Conv1D) or "forward" in module.__dict__:
        return False
    weight = linear_weight(module)
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def _product(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """W x + b. weight: [d_out, d_in] bfloat16. x: [..., d_in] float32. Returns [..., d_out] float32."""
    found = linear(x.bfloat16(), weight).float()
    return found if bias is None else found + bias
