"""Seeded sampling in batches with a KV cache.

The random numbers of a text are drawn before any text is sampled. A text therefore depends only on its own numbers, not
on the other rows or on the size of the batch. The global random state is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import torch

from vllm_edit.models.hooks import frozen, last_position

if TYPE_CHECKING:
    from transformers import Cache

    from vllm_edit.models.causal_lm import CausalLM


@dataclass(frozen=True)
class Start:
    """The start of a sampled text.

    ids: ids before the first sampled token. The first `hidden` of them are not part of the text.
    first: allowed ids of the first sampled token; empty for all ids.
    then: ids that are inserted when the text first ends; sampling continues after them.
    """

    ids: tuple[int, ...]
    hidden: int = 0
    first: tuple[int, ...] = ()
    then: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Draft:
    """A text to sample: its start, and exponential noise [longest, k], which determines its tokens.

    Each step selects the token with the largest p / noise among the k most probable tokens. This samples a token with
    probability p, as `torch.multinomial` does for one sample.
    """

    start: Start
    noise: torch.Tensor

    @classmethod
    def drawn(cls, start: Start, longest: int, top_k: int, generator: torch.Generator) -> Draft:
        """A draft of at most `longest` tokens after its start, each among the `top_k` most probable tokens."""
        rows = [torch.empty(top_k).exponential_(1, generator=generator) for _ in range(longest)]
        return cls(start, torch.stack(rows) if rows else torch.empty(0, top_k))


def sampled(
    model: CausalLM,
    drafts: Sequence[Draft],
    *,
    banned: Collection[int] = (),
    ends: Collection[int] = (),
    batch: int = 128,
    on_step: Callable[[int], None] = lambda tokens: None,
) -> list[list[int]]:
    """Sample each draft's text at temperature 1. Returns ids without the hidden ids of the start, in the drafts' order.

    Args:
        banned: ids that are never sampled.
        ends: ids that end a text and are not part of it.
        batch: maximum number of rows per batch. Starts in a batch have equal length, so there is no padding; a row
            leaves the batch when it ends.
        on_step: called with the number of tokens sampled in each step.
    """
    texts: dict[int, list[int]] = {}
    with torch.no_grad(), frozen(model):
        for rows in _batches(drafts, batch):
            found = _batch(model, [drafts[row] for row in rows], banned, frozenset(ends), on_step)
            texts.update(zip(rows, found, strict=True))
    return [texts[row] for row in range(len(drafts))]


def _batches(drafts: Sequence[Draft], size: int) -> Iterator[list[int]]:
    """Indices of drafts in batches of at most `size`, of nearly equal size, with starts of the same length."""
    by_length: dict[int, list[int]] = {}
    for number, draft in enumerate(drafts):
        by_length.setdefault(len(draft.start.ids), []).append(number)
    for group in by_length.values():
        equal = ceil(len(group) / ceil(len(group) / size))
        yield from (group[start : start + equal] for start in range(0, len(group), equal))


def _batch(
    model: CausalLM,
    drafts: Sequence[Draft],
    banned: Collection[int],
    ends: frozenset[int],
    on_step: Callable[[int], None],
) -> list[list[int]]:
    rows = [_Row(draft) for draft in drafts]
    going = [row for row in rows if len(row.draft.noise)]
    device = model.get_input_embeddings().weight.device
    forbidden = torch.tensor(sorted(banned), dtype=torch.long, device=device)
    given = torch.tensor([row.draft.start.ids for row in going], device=device)  # [rows, start]
    cache, step = None, 0
    while going:
        logits, cache = _last_logits(model, given, cache)
        logits[:, forbidden[forbidden < logits.shape[1]]] = -torch.inf
        if step == 0:
            _confine(logits, [row.draft.start.first for row in going])
        drawn = _drawn(logits, torch.stack([row.draft.noise[step] for row in going]))
        on_step(len(going))
        step += 1
        going_on = [
            line for line, row in enumerate(going) if row.take(drawn[line], ends) and step < len(row.draft.noise)
        ]
        if len(going_on) < len(going):
            going = [going[line] for line in going_on]
            cache.batch_select_indices(torch.tensor(going_on, dtype=torch.long, device=device))
        given = torch.tensor([row.text[-1:] for row in going], device=device)  # [rows, 1]
    return [row.text for row in rows]


class _Row:
    """An unfinished text."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.text = list(draft.start.ids[draft.start.hidden :])
        self._then = list(draft.start.then)
        self._following = False

    def take(self, drawn: int, ends: frozenset[int]) -> bool:
        """Add the sampled token, or the next token of `then` if these are due. Returns False if the text ends."""
        if not self._following and drawn in ends:
            if not self._then:
                return False
            self._following = True
        if self._following:
            drawn = self._then.pop(0)
            self._following = bool(self._then)
        self.text.append(drawn)
        return True


def _last_logits(model: CausalLM, ids: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, Cache]:
    """Logits [rows, vocabulary] float32 after the last of ids [rows, new], and the extended cache.

    There is no padding and hence no mask, which saves a tenth of the time. Only the last position reaches the head.
    """
    with last_position(model):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
    return out.logits[:, -1].float(), out.past_key_values


def _confine(logits: torch.Tensor, allowed: Sequence[Sequence[int]]) -> None:
    """Set the logits [rows, vocabulary] of ids that are not allowed to −∞, in place; rows without allowed ids are
    unchanged."""
    for row, ids in zip(logits, allowed, strict=True):
        if ids:
            chosen = torch.tensor(ids, device=row.device)
            allowed_logits = row[chosen]
            row.fill_(-torch.inf)
            row[chosen] = allowed_logits


def _drawn(logits: torch.Tensor, noise: torch.Tensor) -> list[int]:
    """A token for each row of logits [rows, vocabulary], selected by noise [rows, k].

    The selection is on the CPU, so that it is the same with every device.
    """
    best = logits.topk(min(noise.shape[1], logits.shape[1]))
    chances = best.values.cpu().softmax(-1) / noise[:, : best.values.shape[1]]
    return best.indices.cpu().gather(1, chances.argmax(-1, keepdim=True))[:, 0].tolist()
