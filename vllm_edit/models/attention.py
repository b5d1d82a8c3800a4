"""The implementation of attention with which a model is loaded."""

from __future__ import annotations

from transformers import PreTrainedConfig


def attention_options(config: PreTrainedConfig) -> dict[str, str]:
    """Options of `from_pretrained` with which transformers computes the attention that vLLM computes.

    transformers' default (5.x, `sdpa_attention_forward`) ignores a limit of the attention scores (Gemma 2:
    `attn_logit_softcapping`). vLLM applies it, and so does transformers' eager attention.
    """
    return {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
