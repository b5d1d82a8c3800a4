"""A common prefix of several texts, which is read once, because its keys and values are the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import Cache, DynamicCache

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM

LEAST = 64
"""Minimum length of a common prefix that makes a separate forward pass worthwhile."""


@torch.no_grad()
def read_once(model: CausalLM, ids: Sequence[int], rows: int) -> Cache:
    """A cache with the keys and values of `ids`, repeated for `rows` rows."""
    cache = DynamicCache(config=model.config)
    given = torch.tensor([list(ids)], device=model.device)
    model(input_ids=given, attention_mask=torch.ones_like(given), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    return cache


def sharing(texts: Sequence[Sequence[int]], most: Sequence[int], rows: Sequence[int]) -> list[tuple[list[int], int]]:
    """The `rows` of `texts` in groups, each with the length of its texts' common prefix.

    This length is at least `LEAST` and half of each text, and at most `most` of each text. Texts without such a prefix
    form one group with length 0.
    """
    groups: list[tuple[list[int], int]] = []
    alone: list[int] = []
    waiting = sorted(rows, key=lambda row: tuple(texts[row]))
    while waiting:
        first, *others = waiting
        group, shared, longest = [first], most[first], len(texts[first])
        for row in others:
            common = min(_in_common(texts[first], texts[row]), shared, most[row])
            longest = max(longest, len(texts[row]))
            if common < LEAST or 2 * common < longest:
                break
            group.append(row)
            shared = common
        if len(group) > 1:
            groups.append((group, shared))
        else:
            alone.append(first)
        waiting = waiting[len(group) :]
    return [*groups, (alone, 0)] if alone else groups


def shares(model: CausalLM, longest: int) -> bool:
    """True if the model supports padding in the middle of a text of `longest` tokens.

    In a sliding window shorter than the text, padding would replace tokens.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is None or longest <= window


def _in_common(first: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next(
        (place for place, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other))
    )
