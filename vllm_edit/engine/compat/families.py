"""Registers GPT-2 and GPT-J with LoRA: the models of ROME's and MEMIT's benchmarks.

Upstream: vLLM implements both without `SupportsLoRA` (0.32.0: `models/gpt2.py`, `models/gpt_j.py`), though their linear
layers are vLLM's own and can be wrapped. vLLM's registry allows out-of-tree registration. Delete each entry when vLLM's
own class supports LoRA.
"""

from __future__ import annotations

CLASSES = {
    "GPT2LMHeadModel": "vllm_edit.engine.compat.gpt_lora:GPT2WithLoRA",
    "GPTJForCausalLM": "vllm_edit.engine.compat.gpt_lora:GPTJWithLoRA",
}


def register() -> None:
    """Register the classes by name: vLLM imports them only when it serves such a model. Idempotent."""
    from vllm import ModelRegistry

    for architecture, path in CLASSES.items():
        ModelRegistry.register_model(architecture, path)
