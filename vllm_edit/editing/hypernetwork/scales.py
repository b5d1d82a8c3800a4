"""How far to go along a network's update: the least scale at which the edit's answer leads (a line search).

MEND's α is one number per matrix, learned for the mean edit. For most edits that is further than needed, and their
neighbours follow; for a few it is not far enough. The direction is the network's, the length is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from vllm_edit.editing.base import Base
from vllm_edit.editing.hooks import frozen
from vllm_edit.editing.hypernetwork.network import Factors
from vllm_edit.editing.hypernetwork.objective import updated
from vllm_edit.editing.rows import Row, leads

SCALES = tuple(2 ** (step / 4) for step in range(-8, 5))
"""From a quarter of the network's own length to twice that, each 19 % more than the one before."""


def least_scales(base: Base, factors: Factors, rows: Sequence[Row], margin: float, tokens: int) -> torch.Tensor:
    """For each edit the least of `SCALES` at which every answer of its rows leads by `margin` nats, [edits] float64.

    An edit that reaches it at none gets the scale at which its least lead is largest.

    factors: of all edits, as the network gives them.  rows: prompts with answers; `Row.edit` numbers the edits.
    tokens: most tokens in one forward pass.
    """
    count = len(next(iter(factors.values()))[0])
    chosen, best = torch.ones(count, dtype=torch.float64), torch.full((count,), -torch.inf)
    for scale in SCALES:
        waiting = [row for row in rows if best[row.edit] < margin]
        if not waiting:
            break
        found = torch.full((count,), torch.inf)
        further = {name: (A, scale * B) for name, (A, B) in factors.items()}
        with frozen(base.model):
            lead = leads(base.model, waiting, tokens, partial(updated, base, further, waiting))
        found.scatter_reduce_(0, torch.tensor([row.edit for row in waiting]), lead, "amin")
        better = found.isfinite() & (found > best)
        chosen[better], best[better] = scale, found[better]
    return chosen
