"""What a model answers with updates in the forward of a site, as they will be served: full passes, at every token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch.nn.functional import pad

from vllm_edit.artefacts.site import Site
from vllm_edit.deltas.delta import LowRank
from vllm_edit.deltas.forward import low_rank_forward
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import Batch, Row, Within, following, leads


def served_leads(
    base: Base, site: Site, rows: Sequence[Row], updates: Sequence[LowRank], chosen: Sequence[int], tokens: int
) -> torch.Tensor:
    """The lead of every row's answer under one of the updates, [rows].

    updates: of any ranks. chosen: for each row the number of its update. tokens: most in one pass.
    """
    with frozen(base.model):
        return leads(base.model, rows, tokens, _serving(base, site, updates, chosen))


def served_following(
    base: Base, site: Site, rows: Sequence[Row], updates: Sequence[LowRank], chosen: Sequence[int], tokens: int
) -> list[int]:
    """The likeliest id after every row's prompt, with the arguments of `served_leads`. Answers are not read."""
    with frozen(base.model):
        return following(base.model, rows, tokens, _serving(base, site, updates, chosen))


def _serving(base: Base, site: Site, updates: Sequence[LowRank], chosen: Sequence[int]) -> Within:
    """Each row's own update, around the forward pass of a batch."""
    module = find_module(base.model, site.module)
    device = linear_weight(module).device
    rank = max(update.A.shape[0] for update in updates)
    # Factors of lower rank are filled up with zeros, which add nothing.
    A = torch.stack([pad(one.A.float(), (0, 0, 0, rank - one.A.shape[0])) for one in updates]).to(
        device
    )  # [u, r, d_in]
    B = torch.stack([pad(one.B.float(), (0, rank - one.B.shape[1])) for one in updates]).to(device)  # [u, d_out, r]
    own = torch.tensor(chosen, device=device)

    def update_of(batch: Batch) -> AbstractContextManager[None]:
        if len(updates) == 1:
            return low_rank_forward(module, A[0], B[0])
        return low_rank_forward(module, A[own[batch.rows]], B[own[batch.rows]])

    return update_of


def weight_norm(base: Base, site: Site) -> float:
    """‖W‖ of the site's module, Frobenius."""
    return float(linear_weight(find_module(base.model, site.module)).detach().float().norm())
