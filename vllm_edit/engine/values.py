"""vLLM's own values for a request: how it is sampled, and with which adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    """The likeliest token at each step, `max_tokens` at most. options: more fields of `vllm.SamplingParams`."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **options)


def adapter(name: str, number: int, folder: str | Path) -> LoRARequest:
    """The adapter in `folder`, called `name`. number: an engine knows adapters by it, from 1."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, str(folder))
