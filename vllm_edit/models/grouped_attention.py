"""Attention that reads keys and values once for all query heads that share them.

torch's CPU attention kernels need as many key heads as query heads, so transformers repeats the keys and values of a
model with grouped queries (arXiv 2305.13245) in every block and pass. Here, the query heads of a group become
additional queries of one head: the result is the same, without repetition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM

_PLAIN, _GROUPED = "sdpa", "vllm_edit_grouped"


@contextmanager
def grouped_attention(model: CausalLM) -> Iterator[None]:
    """Within the context, a CPU model with torch's attention kernels reads keys and values once per group of heads.

    Other models are not affected.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != _PLAIN or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(_GROUPED, _attended)
    AttentionMaskInterface.register(_GROUPED, sdpa_mask)
    config._attn_implementation = _GROUPED
    try:
        yield
    finally:
        config._attn_implementation = _PLAIN


def _attended(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attention [batch, q, heads, head_dim].

    query: [batch, heads, q, head_dim]. key, value: [batch, groups, k, head_dim].
    attention_mask: [batch, 1, q, k] or None.
    """
    batch, heads, queries, width = query.shape
    size = heads // key.shape[1]
    by_mask = attention_mask is not None or queries == 1  # else the kernel's causal mask, which depends on query order
    if size == 1 or not by_mask or given.get("position_bias") is not None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **given
        )
        return found
    mask = attention_mask if queries == 1 or attention_mask is None else attention_mask.repeat(1, 1, size, 1)
    folded = query.reshape(batch, heads // size, size * queries, width)
    mixed = nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return mixed.reshape(batch, heads, queries, -1).transpose(1, 2).contiguous(), None
