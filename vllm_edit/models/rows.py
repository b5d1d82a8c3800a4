"""Rows: a prompt with the answer that is taught or scored after it, and batched forward passes over rows.

Ids are appended to ids, never decoded and encoded again. Padding is on the right, where causal attention ignores it and
all model families count positions in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import Cache

from vllm_edit.models.lengths import check_length
from vllm_edit.models.padding import padded

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM

_FILLING, _LEAST_FILLED = 1024, 0.75


@dataclass(frozen=True)
class Row:
    """A prompt's ids, the index of the site's token among them, and the ids of the answer after it.

    group: the key group whose update acts on the row. edit: the row's edit. position: index of the site's token.
    answer: empty if only the distribution after the prompt matters.
    begin: index of the first token that an update may change; None for the site's token.
    """

    group: int
    edit: int
    form: str
    ids: tuple[int, ...]
    position: int
    answer: tuple[int, ...] = ()
    begin: int | None = None

    @property
    def first(self) -> int:
        """The first token that an update may change."""
        return self.position if self.begin is None else self.begin

    @property
    def length(self) -> int:
        """Number of input tokens: the answer's last token is predicted, not read."""
        return len(self.ids) + max(len(self.answer) - 1, 0)


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length.

    rows: [b] indices into the list that was batched. input_ids, attention_mask: [b, seq].
    places: [b, m], positions of the logits of each answer token. answers: [b, m]. scored: [b, m], False for padding.
    """

    rows: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    places: torch.Tensor
    answers: torch.Tensor
    scored: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], indices: Sequence[int], device: torch.device) -> Batch:
        chosen = [rows[index] for index in indices]
        width = max(1, *(len(row.answer) for row in chosen))
        input_ids, attention_mask = padded([(*row.ids, *row.answer[:-1]) for row in chosen], 0, left=False)
        places, answers = (torch.zeros(len(chosen), width, dtype=torch.long) for _ in range(2))
        scored = torch.zeros(len(chosen), width, dtype=torch.bool)
        for line, row in enumerate(chosen):
            places[line] = (torch.arange(width) + len(row.ids) - 1).clamp_max(row.length - 1)
            answers[line, : len(row.answer)] = torch.tensor(row.answer, dtype=torch.long)
            scored[line, : len(row.answer)] = True
        tensors = (torch.tensor(indices), input_ids, attention_mask, places, answers, scored)
        return cls(*(tensor.to(device) for tensor in tensors))


def batches(model: CausalLM, rows: Sequence[Row], indices: Iterable[int], tokens: int) -> list[Batch]:
    """The rows at `indices`, longest first, in batches of at most `tokens` tokens with padding (at least one row).

    A batch with enough tokens for full speed ends before a row of which more than a quarter would be padding.

    Raises:
        UnsafeEdit: a row is longer than the model's context.
    """
    order = sorted(indices, key=lambda index: (-rows[index].length, index))
    device, made = device_of(model), list[Batch]()
    if order:
        first = rows[order[0]]
        check_length(model, first.length, f"edit {first.edit} ({first.form}): a prompt with its context and answer")
    while order:
        longest = rows[order[0]].length
        full, count = tokens // longest, 1
        while count < min(full, len(order)) and (
            count * longest < _FILLING or rows[order[count]].length >= _LEAST_FILLED * longest
        ):
            count += 1
        made.append(Batch.of(rows, order[:count], device))
        order = order[count:]
    return made


def run_batch(model: CausalLM, batch: Batch, cache: Cache | None = None) -> torch.Tensor:
    """The model's own logits before every answer token, [b, m, vocabulary] float32.

    cache: filled with the keys and values of every token, padding included.

    Only those positions reach the head: with a large vocabulary, the logits of all positions would take most of the
    time and memory. The model's own processing of logits (capping, scaling) applies to them.
    """
    lines = torch.arange(len(batch.rows), device=batch.rows.device)[:, None]

    def select(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (args[0][lines, batch.places],)  # [b, seq, d] → [b, m, d]

    with model.get_output_embeddings().register_forward_pre_hook(select):
        out = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
    return out.logits.float()


def answer_scores(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean NLL of the answer's tokens, minimum lead of an answer token over its best rival in nats), each [b].

    The lead is positive if and only if greedy decoding from the prompt gives the answer's ids. Rows without an answer
    get NLL 0 and an infinite lead.
    """
    own = logits.gather(-1, batch.answers[..., None])[..., 0]  # [b, m]
    nll = ((logits.logsumexp(-1) - own) * batch.scored).sum(1) / batch.scored.sum(1).clamp_min(1)
    best = logits.detach().topk(2, dim=-1)
    rival = torch.where(best.indices[..., 0] == batch.answers, best.values[..., 1], best.values[..., 0])
    lead = torch.where(batch.scored, own.detach() - rival, torch.inf).amin(1)
    return nll, lead


Within = Callable[[Batch], AbstractContextManager[None]]
"""Makes a context manager for the forward pass of a batch, which applies the update of each of its rows."""


def unchanged_forward(batch: Batch) -> AbstractContextManager[None]:
    """The `Within` of the base model."""
    return nullcontext()


def leads(model: CausalLM, rows: Sequence[Row], tokens: int, within: Within = unchanged_forward) -> torch.Tensor:
    """`answer_scores`' lead of every row, [len(rows)] float32 on the CPU."""
    result = torch.empty(len(rows))
    with torch.no_grad():
        for batch in batches(model, rows, range(len(rows)), tokens):
            with within(batch):
                result[batch.rows.cpu()] = answer_scores(run_batch(model, batch), batch)[1].cpu()
    return result


def following(model: CausalLM, rows: Sequence[Row], tokens: int, within: Within = unchanged_forward) -> list[int]:
    """The most likely id after every row's prompt. The rows' answers are ignored."""
    asked, result = [replace(row, answer=()) for row in rows], [0] * len(rows)
    with torch.no_grad():
        for batch in batches(model, asked, range(len(asked)), tokens):
            with within(batch):
                likeliest = run_batch(model, batch)[:, 0].argmax(-1)  # [b]
            for index, token in zip(batch.rows.tolist(), likeliest.tolist(), strict=True):
                result[index] = token
    return result


def greedy(model: CausalLM, rows: Sequence[Row], count: int, tokens: int) -> list[Row]:
    """The rows with `count` greedily decoded ids as answers, which replace the rows' own answers."""
    grown = [replace(row, answer=()) for row in rows]
    for _ in range(count):
        found = following(model, [replace(row, ids=row.ids + row.answer) for row in grown], tokens)
        grown = [replace(row, answer=(*row.answer, token)) for row, token in zip(grown, found, strict=True)]
    return grown


def device_of(model: CausalLM) -> torch.device:
    """The device of the model's inputs."""
    return next(model.parameters()).device
