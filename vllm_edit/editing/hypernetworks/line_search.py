"""Line search along a network's update: the smallest scale at which the edit's answer leads.

A network learns one length for the average edit (MEND: α per matrix). It is too large for most edits, so that their
neighbours change too, and too small for others. The network determines the direction; the line search determines the
length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_edit.editing.hypernetworks.hypernetwork import Factors
from vllm_edit.editing.hypernetworks.loss import blocks_below, updated
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import frozen
from vllm_edit.models.lower_blocks import Below
from vllm_edit.models.rows import Row, answer_scores, batches, run_batch
from vllm_edit.progress import Progress

SCALES = tuple(2 ** (step / 4) for step in range(-8, 5))
"""Scales from a quarter of the network's own length to twice that length, in steps of 19 %."""


def least_scales(
    base: Base,
    factors: Factors,
    rows: Sequence[Row],
    margin: float,
    tokens: int,
    scales: Sequence[float] = SCALES,
    progress: Progress | None = None,
) -> torch.Tensor:
    """For each edit, the smallest of the scales at which every answer of its rows leads by `margin`, [edits] float64.

    An edit that does not reach the margin at any scale gets the scale with the largest minimum lead.

    Args:
        factors: the network's factors of all edits.
        rows: prompts with answers; `Row.edit` is the index of the edit.
        margin: required lead in nats.
        tokens: maximum number of tokens in one forward pass.
        scales: the scales to try, ascending.
        progress: called after each scale.
    """
    count, model = len(next(iter(factors.values()))[0]), base.model
    below = Below(model, blocks_below(base, factors))
    chosen, best = torch.ones(count, dtype=torch.float64), torch.full((count,), -torch.inf)
    with torch.no_grad(), frozen(model):
        if below.blocks:
            with below.watched() as states:
                for batch in batches(model, rows, range(len(rows)), tokens):
                    run_batch(model, batch)
                    below.keep(batch, states)
        for number, scale in enumerate(scales, 1):
            waiting = [index for index, row in enumerate(rows) if best[row.edit] < margin]
            found = torch.full((count,), torch.inf)
            for batch in batches(model, rows, waiting, tokens):
                indices = batch.rows.tolist()
                with below.skipped(below.states(indices)), updated(base, factors, rows, batch, scale):
                    lead = answer_scores(run_batch(model, batch), batch)[1].cpu()
                found.scatter_reduce_(0, torch.tensor([rows[index].edit for index in indices]), lead, "amin")
            better = found.isfinite() & (found > best)
            chosen[better], best[better] = scale, found[better]
            if progress:
                progress("searching lengths", number, len(scales))
    return chosen
