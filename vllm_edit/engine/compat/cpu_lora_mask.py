"""Cure of the CPU defect: a base request batched with patched ones got the patch of the last slot.

Upstream: vLLM's torch LoRA ops index the stacked adapters by slot; a token without adapter carries slot -1, which
Python reads as "the last". Present in 0.32.0; vllm-project/vllm pull requests 48421 and 49656 are open. Delete this
file when the probe finds nothing on the oldest version that we support.

Probe, then patch: the op is called once with slot -1 on a toy tensor, and only if that changes the output are the ops
replaced, by ones that zero the inputs of such tokens. The probe is then repeated; if it still fails, the process must
not serve.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

OPS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
"""The sgmv_* ops call these through their module, so curing these cures all six."""


def is_defective(shrink: Callable[..., Any]) -> bool:
    """True if `shrink` (a `bgmv_shrink`) applies an adapter to a token whose slot is -1."""
    import torch

    inputs, weights = torch.ones(1, 2), torch.ones(1, 1, 1, 2)  # one token; one slot of rank 1, d_in 2
    output = torch.zeros(1, 1)
    shrink(inputs, weights, output, torch.tensor([-1]))
    return bool(output.any())


def masked(op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` for which a token with slot -1 has zero input, hence zero contribution, and never slot -1 itself."""
    import torch

    @functools.wraps(op)
    def run(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any) -> Any:
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

    if not is_defective(punica_cpu.bgmv_shrink):
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
