"""The classes that `families` registers. Only vLLM imports this module, when it serves such a model."""

from __future__ import annotations

from vllm.model_executor.models.gpt2 import GPT2LMHeadModel
from vllm.model_executor.models.gpt_j import GPTJForCausalLM
from vllm.model_executor.models.interfaces import SupportsLoRA


class GPT2WithLoRA(GPT2LMHeadModel, SupportsLoRA):
    """vLLM transposes Conv1D weights when it loads them, so A is [r, d_in] and B is [d_out, r], as everywhere."""


class GPTJWithLoRA(GPTJForCausalLM, SupportsLoRA):
    packed_modules_mapping = {  # noqa: RUF012  # an instance's variable by vLLM's declaration
        "qkv_proj": ["q_proj", "k_proj", "v_proj"]
    }
