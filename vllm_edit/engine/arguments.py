"""How an engine with adapters is started on this machine: the same for the server, `PatchedLLM` and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_edit.engine.compat import version, wrapped
from vllm_edit.engine.plugins import merged_plugins

_CACHE = "VLLM_CPU_KVCACHE_SPACE"
_CACHE_GIB = "1"  # enough for small models; the default takes half of the memory


@dataclass(frozen=True)
class EngineArguments:
    """Arguments of `vllm.LLM`; `vllm serve` has a flag of each name."""

    lora_target_modules: list[str]
    max_lora_rank: int
    max_loras: int
    dtype: str
    enforce_eager: bool
    enable_lora: bool = True


def engine_arguments(modules: Sequence[str], rank: int, slots: int) -> EngineArguments:
    """LoRA around exactly these modules.

    Args:
        modules: names of the wrapped modules.
        rank: the maximum rank of an adapter.
        slots: the maximum number of adapters in a batch.
    """
    cpu = version.is_cpu()
    return EngineArguments(
        lora_target_modules=wrapped.candidates(modules),
        max_lora_rank=rank,
        # On a CPU, the spare slot is a second safeguard against the defect of `cpu_lora_mask`.
        max_loras=slots + 1 if cpu else slots,
        # CPU: bfloat16 without hardware support runs 100x slower. CUDA: the LoRA kernels refuse float32.
        dtype="float32" if cpu else "bfloat16",
        enforce_eager=cpu,
    )


def engine_environment(present: Mapping[str, str]) -> dict[str, str]:
    """Variables for the engine's processes, which load this package's plugin; it cures the CPU defect.

    Args:
        present: the environment; the user's own choices in it stay.
    """
    environment = {"VLLM_PLUGINS": merged_plugins(present.get("VLLM_PLUGINS"))}
    if version.is_cpu():
        environment[_CACHE] = present.get(_CACHE, _CACHE_GIB)
    return environment
