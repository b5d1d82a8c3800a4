"""Perplexity on ordinary text, of the base and with a delta: what many edits do to everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from vllm_edit.deltas.delta import Delta
from vllm_edit.errors import EditError
from vllm_edit.greedy import batches, pad_id, padded
from vllm_edit.prompting import prompt_ids

IGNORED = -100


@dataclass(frozen=True)
class Perplexity:
    """Of the base and with a delta, over the same `tokens` predicted tokens."""

    base: float
    edited: float
    tokens: int

    @property
    def drift(self) -> float:
        """Relative change: 0.02 is 2 % worse, negative is better."""
        return self.edited / self.base - 1


def perplexity_drift(
    model: Any,
    tokenizer: Any,
    delta: Delta,
    texts: Sequence[str],
    *,
    rows: int = 16,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Perplexity:
    """Perplexity on `texts` without and with `delta`; the model's weights stay as they are."""
    pieces = pieces_of(model, tokenizer, texts)
    base = perplexity(model, tokenizer, pieces, rows=rows, progress=progress)
    with delta.apply(model):
        edited = perplexity(model, tokenizer, pieces, rows=rows, progress=progress)
    return Perplexity(base, edited, sum(len(piece) - 1 for piece in pieces))


@torch.no_grad()
def perplexity(
    model: Any,
    tokenizer: Any,
    pieces: Sequence[Sequence[int]],
    *,
    rows: int = 16,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> float:
    """exp of the mean negative log-likelihood over all predicted tokens: a long piece weighs more than a short one.

    pieces: token ids, see `pieces_of`; the first token of each is given. rows: pieces in one forward pass.
    """
    total, count, done = 0.0, 0, 0
    for batch in batches([len(piece) for piece in pieces], rows):
        progress("perplexity", done, len(pieces))
        # Padding is on the right, where causal attention does not see it and no token is predicted.
        ids, mask = padded([pieces[row] for row in batch], pad_id(model, tokenizer), left=False)  # [rows, tokens]
        wanted = ids.masked_fill(mask == 0, IGNORED)[:, 1:].to(model.device)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1]
        nll = cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
        total += float(nll)
        count += int((wanted != IGNORED).sum())
        done += len(batch)
    return math.exp(total / count)


def pieces_of(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The texts' ids, cut where the model's context ends; what is too short to predict a token is left out.

    Raises:
        EditError: nothing is left.
    """
    context = int(model.config.max_position_embeddings)
    whole = [prompt_ids(tokenizer, text) for text in texts]
    pieces = [ids[start : start + context] for ids in whole for start in range(0, len(ids), context)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise EditError(f"perplexity needs text of at least two tokens, got {len(texts)} texts without any")
    return pieces
