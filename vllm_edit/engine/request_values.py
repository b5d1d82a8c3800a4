"""Builds vLLM's values for a request: its sampling parameters and its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    """Sampling parameters that take the most likely token at each step.

    Args:
        max_tokens: maximum number of tokens to generate.
        options: more fields of `vllm.SamplingParams`.
    """
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **options)


def adapter(name: str, number: int, folder: str | Path) -> LoRARequest:
    """The request for an adapter.

    Args:
        name: the adapter's name.
        number: the engine's id of the adapter, from 1.
        folder: the adapter's PEFT directory.
    """
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, str(folder))
