"""Training objective of the hypernetwork: scores of rows under the updates of their edits, applied as served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    divergence: KL(base ‖ edited), mean over the scored positions.
    same: True if base and edited model have the same most likely token at all scored positions.
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
) -> Outcomes:
    """Run every row in the base and under the update of its edit (`Row.edit`), W x + B(A x) at every token.

    With a nonzero weight, the gradient of Σ over rows of weight · (nll or divergence) is added to the `grad` of the
    factors, which must be leaf tensors. The graphs of the base and of the hypernetwork therefore never exist at the
    same time (as in MALMEN, arXiv 2311.04661).
    """
    empty = torch.zeros(len(rows))
    outcomes = Outcomes(empty, empty.clone(), empty.clone(), torch.zeros(len(rows), dtype=torch.bool))
    below = Below(base.model, blocks_below(base, factors))
    learns = bool(nll_weight or divergence_weight)
    for batch in batches(base.model, rows, range(len(rows)), tokens):
        with torch.no_grad(), below.watched() as states:
            before = run_batch(base.model, batch).log_softmax(-1)
        places = batch.scored.clone()
        places[:, 0] = True  # for a row without an answer, compare the token after its prompt
        hidden = states[0] if states else None
        with torch.set_grad_enabled(learns), below.skipped(hidden), updated(base, factors, rows, batch):
            logits = run_batch(base.model, batch)
            nll, lead = answer_scores(logits, batch)
            after = logits.log_softmax(-1)
            every = (before.exp() * (before - after)).sum(-1) * places  # [b, m]
            divergence = every.sum(1) / places.sum(1)
            if learns:
                loss = nll_weight * nll.sum() + divergence_weight * divergence.sum()
                loss.backward()  # type: ignore[no-untyped-call]
        same = ((before.argmax(-1) == after.argmax(-1)) | ~places).all(1)
        index = batch.rows.cpu()
        for whole, part in zip(vars(outcomes).values(), (nll, lead, divergence, same), strict=True):
            whole[index] = part.detach().cpu()
    return outcomes


@contextmanager
def updated(base: Base, factors: Factors, rows: Sequence[Row], batch: Batch, scale: float = 1.0) -> Iterator[None]:
    """Run each row of the batch under `scale` times its own edit's update, in every edited module."""
    edits = torch.tensor([rows[index].edit for index in batch.rows.tolist()], device=batch.rows.device)
    with ExitStack() as stack:
        for name, (A, B) in factors.items():
            stack.enter_context(low_rank_forward(find_module(base.model, name), A[edits], scale * B[edits]))
        yield


def blocks_below(base: Base, factors: Factors) -> tuple[str, ...]:
    """The blocks below the first edited module; an update does not affect them."""
    layers = base.layout.layers
    first = min(number for number, layer in enumerate(layers) if any(name.startswith(f"{layer}.") for name in factors))
    return layers[:first]
