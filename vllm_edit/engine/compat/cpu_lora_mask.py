"""Fixes the CPU defect: a base request in a batch with patched requests is answered with the last slot's patch.

Upstream: vLLM's torch LoRA ops index the stacked adapters by slot; a token without adapter carries slot -1, which
Python reads as the last slot. Present in 0.32.0; vllm-project/vllm pull requests 48421 and 49656 are open. Delete this
file when the probe finds no defect on the oldest version that we support.

Probe, then patch: `cure` calls the op once with slot -1 on a toy tensor. If that changes the output, it replaces the
ops by versions that zero the inputs of such tokens, and probes again. If the probe still fails, the process must not
serve.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

OPS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
"""The sgmv_* ops call these through their module, so patching these fixes all six."""


def is_defective(shrink: Callable[..., Any]) -> bool:
    """True if `shrink` (a `bgmv_shrink`) applies an adapter to a token whose slot is -1."""
    import torch

    inputs, weights = torch.ones(1, 2), torch.ones(1, 1, 1, 2)  # one token; one slot of rank 1, d_in 2
    output = torch.zeros(1, 1)
    shrink(inputs, weights, output, torch.tensor([-1]))
    return bool(output.any())


def masked(op: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `op` so that a token with slot -1 gets zero input, hence contributes nothing, and never indexes slot -1."""
    import torch

    @functools.wraps(op)
    def run(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        indices: torch.Tensor,
        *rest: Any,
        **named: Any,
    ) -> Any:
        absent = indices < 0  # [tokens]
        inputs = torch.where(absent.unsqueeze(-1), torch.zeros((), dtype=inputs.dtype, device=inputs.device), inputs)
        return op(inputs, weights, output, indices.clamp(min=0), *rest, **named)

    return run


def cure() -> bool:
    """Patch vLLM's torch LoRA ops in this process if they are defective; True if they were patched now. Idempotent.

    Raises:
        RuntimeError: the ops are still defective afterwards.
    """
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if not is_defective(punica_cpu.bgmv_shrink):  # type: ignore[attr-defined]  # it imports the op by its name
        return False
    for name in OPS:
        replacement = masked(getattr(lora_ops, name))
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, replacement)
    if any(is_defective(module.bgmv_shrink) for module in (lora_ops, torch_ops, punica_cpu)):
        raise RuntimeError(
            "vLLM's CPU LoRA ops apply the last slot's adapter to base requests and could not be patched; "
            "expected bgmv_shrink in vllm.lora.ops.torch_ops.lora_ops and in punica_cpu; use vLLM 0.32"
        )
    logger.info("patched vLLM's CPU LoRA ops: tokens without adapter no longer get the last slot's")
    return True
