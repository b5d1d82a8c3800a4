"""Training objective of the hypernetwork: scores of rows under the updates of their edits, applied as served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from vllm_edit.deltas.forward import low_rank_forward
from vllm_edit.editing.hypernetworks.hypernetwork import Factors
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.lower_blocks import Below
from vllm_edit.models.rows import Batch, Row, answer_scores, batches, run_batch


@dataclass(frozen=True)
class Outcomes:
    """Scores per row, each [rows] on the CPU, detached.

    nll: mean over the answer's tokens.
    lead: minimum lead over the answer's tokens in nats; positive if greedy decoding gives the answer.
    divergence: KL(base ‖ edited), mean over the scored positions; 0 if the base is not compared.
    same: True if base and edited model have the same most likely token at all scored positions; False if the base is
        not compared.
    """

    nll: torch.Tensor
    lead: torch.Tensor
    divergence: torch.Tensor
    same: torch.Tensor


def run(
    base: Base,
    factors: Factors,
    rows: Sequence[Row],
    tokens: int,
    *,
    nll_weight: float = 0.0,
    divergence_weight: float = 0.0,
    compared: bool = True,
) -> Outcomes:
    """Run every row under the update of its edit (`Row.edit`), W x + B(A x) at every token, and in the base if
    `compared`.

    With a nonzero weight, the gradient of Σ over rows of weight · (nll or divergence) is added to the `grad` of the
    factors, which must be leaf tensors. The graphs of the base and of the hypernetwork therefore never exist at the
    same time (as in MALMEN, arXiv 2311.04661).
    """
    empty = torch.zeros(len(rows))
    outcomes = Outcomes(empty, empty.clone(), empty.clone(), torch.zeros(len(rows), dtype=torch.bool))
    below = Below(base.model, blocks_below(base, factors))
    learns = bool(nll_weight or divergence_weight)
    for batch in batches(base.model, rows, range(len(rows)), tokens):
        before, hidden = _in_base(base, below, batch) if compared else (None, None)
        with torch.set_grad_enabled(learns), below.skipped(hidden), updated(base, factors, rows, batch):
            logits = run_batch(base.model, batch)
            nll, lead = answer_scores(logits, batch)
            divergence, same = torch.zeros_like(nll), torch.zeros(len(nll), dtype=torch.bool)
            if before is not None:
                divergence, same = _divergence(before, logits.log_softmax(-1), batch)
            weighted = [(nll_weight, nll), (divergence_weight, divergence)]
            if losses := [weight * part.sum() for weight, part in weighted if weight]:
                sum(losses[1:], losses[0]).backward()  # type: ignore[no-untyped-call]
        index = batch.rows.cpu()
        for whole, part in zip(vars(outcomes).values(), (nll, lead, divergence, same), strict=True):
            whole[index] = part.detach().cpu()
    return outcomes


def _in_base(base: Base, below: Below, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The base's log-probabilities [b, m, vocabulary], and the states below the edited blocks, for `Below.skipped`."""
    with torch.no_grad(), below.watched() as states:
        before = run_batch(base.model, batch).log_softmax(-1)
    return before, states[0] if states else None


def _divergence(before: torch.Tensor, after: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """`Outcomes`' divergence and same, each [b], from log-probabilities [b, m, vocabulary].

    For a row without an answer, the token after its prompt is compared.
    """
    places = batch.scored.clone()
    places[:, 0] = True
    every = (before.exp() * (before - after)).sum(-1) * places  # [b, m]
    same = ((before.argmax(-1) == after.argmax(-1)) | ~places).all(1)
    return every.sum(1) / places.sum(1), same


@contextmanager
def updated(base: Base, factors: Factors, rows: Sequence[Row], batch: Batch, scale: float = 1.0) -> Iterator[None]:
    """Run each row of the batch under `scale` times its own edit's update, in every edited module."""
    edits = torch.tensor([rows[index].edit for index in batch.rows.tolist()], device=batch.rows.device)
    with ExitStack() as stack:
        for name, (A, B) in factors.items():
            stack.enter_context(low_rank_forward(find_module(base.model, name), A[edits], scale * B[edits]))
        yield


def blocks_below(base: Base, modules: Iterable[str]) -> tuple[str, ...]:
    """The blocks below the first of the edited modules; an update does not affect them."""
    layers, names = base.layout.layers, list(modules)
    first = min(number for number, layer in enumerate(layers) if any(name.startswith(f"{layer}.") for name in names))
    return layers[:first]
