"""Greedy answers that end early: a row leaves its batch as soon as the caller has enough tokens.

This is for thousands of questions with answers of a few words. Most rows leave after two or three tokens, and the
common prefix of a batch's prompts is read once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from transformers import Cache, DynamicCache, PreTrainedTokenizerFast

from vllm_edit.models.greedy import end_ids, pad_id
from vllm_edit.models.hooks import last_position
from vllm_edit.models.padding import padded
from vllm_edit.models.penalties import Penalties
from vllm_edit.models.shared_prefix import read_once

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM

Enough = Callable[[int, Sequence[int]], bool]
"""Callback with a row's index and its new tokens so far; returns True to end the row."""


@torch.no_grad()
def greedy_until(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    enough: Enough,
) -> list[list[int]]:
    """Greedy continuations of prompts' ids, in one batch, each of at most `most[row]` tokens.

    A row ends at the end of a turn (whose token is omitted), at its `most`, or when `enough` returns True. The model's
    `penalties` apply.
    """
    made: list[list[int]] = [[] for _ in prompts]
    rows = [row for row in range(len(prompts)) if most[row] > 0]
    if not rows:
        return made
    ends, device = set(end_ids(model, tokenizer)), model.device
    shared = _shared(model, [prompts[row] for row in rows])
    beginning = prompts[rows[0]][:shared]
    cache = read_once(model, beginning, len(rows)) if shared else DynamicCache(config=model.config)
    ids, mask = padded([prompts[row][shared:] for row in rows], pad_id(model, tokenizer), left=True)
    ids, mask = ids.to(device), torch.cat([torch.ones(len(rows), shared, dtype=mask.dtype), mask], dim=1).to(device)
    penalties = Penalties.of(model.generation_config)
    while True:
        logits = _next_logits(model, ids, mask, cache)  # [rows, vocabulary]
        logits = penalties.applied(logits, [prompts[row] for row in rows], [made[row] for row in rows])
        found = logits.argmax(dim=-1)  # [rows]
        staying = []
        for place, (row, token) in enumerate(zip(rows, found.tolist(), strict=True)):
            if token in ends:
                continue
            made[row].append(token)
            if len(made[row]) < most[row] and not enough(row, made[row]):
                staying.append(place)
        if not staying:
            return made
        remaining = torch.tensor(staying, device=device)
        if len(staying) < len(rows):
            cache.batch_select_indices(remaining)
        rows = [rows[place] for place in staying]
        ids = found[remaining, None]
        mask = torch.cat([mask[remaining], mask.new_ones(len(rows), 1)], dim=1)


def _next_logits(model: CausalLM, ids: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Logits of the token after each row, [rows, vocabulary]; extends the cache by `ids` [rows, tokens].

    mask: [rows, cached + tokens].
    """
    more: dict[str, torch.Tensor] = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        more["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    with last_position(model):
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
    logits: torch.Tensor = out.logits[:, -1]
    return logits


def _shared(model: CausalLM, prompts: Sequence[Sequence[int]]) -> int:
    """Length of the prompts' common prefix, without their last tokens.

    It is 0 if padding between prefix and rest could push the prefix out of a sliding attention window.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if len(prompts) == 1 or (window is not None and 2 * max(map(len, prompts)) > window):
        return 0
    shortest = min(map(len, prompts)) - 1
    first = prompts[0]
    return sum(1 for _ in takewhile(lambda place: all(p[place] == first[place] for p in prompts), range(shortest)))
