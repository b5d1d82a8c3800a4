"""Answers of a model with updates applied at a site as they are served: full forward passes, at every token."""

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
    """The lead of every row's answer under one of the updates, [rows] in nats.

    Args:
        updates: the updates; their ranks may differ.
        chosen: for each row, the index of its update.
        tokens: maximum number of tokens in one forward pass.
    """
    with frozen(base.model):
        return leads(base.model, rows, tokens, _serving(base, site, updates, chosen))


def served_following(
    base: Base, site: Site, rows: Sequence[Row], updates: Sequence[LowRank], chosen: Sequence[int], tokens: int
) -> list[int]:
    """The most likely id after every row's prompt. Takes the arguments of `served_leads`; ignores the rows' answers."""
    with frozen(base.model):
        return following(base.model, rows, tokens, _serving(base, site, updates, chosen))


def _serving(base: Base, site: Site, updates: Sequence[LowRank], chosen: Sequence[int]) -> Within:
    """A context manager for the forward pass of a batch that applies each row's own update."""
    module = find_module(base.model, site.module)
    device = linear_weight(module).device
    rank = max(update.A.shape[0] for update in updates)
    # Factors of lower rank are padded with zeros, which do not change the product.
    A = torch.stack([pad(update.A.float(), (0, 0, 0, rank - update.A.shape[0])) for update in updates]).to(
        device
    )  # [u, r, d_in]
    B = torch.stack([pad(update.B.float(), (0, rank - update.B.shape[1])) for update in updates]).to(
        device
    )  # [u, d_out, r]
    own = torch.tensor(chosen, device=device)

    def update_of(batch: Batch) -> AbstractContextManager[None]:
        if len(updates) == 1:
            return low_rank_forward(module, A[0], B[0])
        return low_rank_forward(module, A[own[batch.rows]], B[own[batch.rows]])

    return update_of


def weight_norm(base: Base, site: Site) -> float:
    """‖W‖ of the site's module, Frobenius."""
    return float(linear_weight(find_module(base.model, site.module)).detach().float().norm())
