"""The site of UltraEdit: its matrices, and the gradient statistics that edits of known facts give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_edit.artefacts.site import Site, check_rank
from vllm_edit.edit import Edit
from vllm_edit.editing.hypernetworks.edited_matrices import last_down_projections
from vllm_edit.editing.ultraedit.answer_gradients import answer_gradients
from vllm_edit.editing.ultraedit.gradient_statistics import GradientStatistics
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.text.thinking import thinking_of

LAYERS = 3
"""Number of last layers whose down projections are edited, or all layers of a model with fewer."""
LEAST_EDITS = 8
"""Minimum number of edits for statistics: the running statistics of a few tokens are degenerate."""
MAX_RANK = 16
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class GradientSite:
    """A site with its gradient statistics, as `Store.create` needs them."""

    site: Site
    statistics: GradientStatistics


def gradient_site(
    base: Base, edits: Sequence[Edit], *, max_rank: int | None = None, slots: int = 16, seed: int = 0
) -> GradientSite:
    """The site at the last layers' down projections, with statistics of the gradients of `edits`. Nothing is trained.

    The published method keeps running statistics of all edits so far. Here they are fixed with the site, so that a
    patch's delta does not depend on earlier patches.

    Args:
        edits: edits that no evaluation uses.
        max_rank: default 16; many edits at once need one rank for each token of their answers.
        seed: the seed with which the edits were drawn.

    Raises:
        EditError: there are too few edits, or vLLM does not support `max_rank`.
    """
    if len(edits) < LEAST_EDITS:
        raise EditError(
            f"the statistics of ultraedit need at least {LEAST_EDITS} edits, got {len(edits)}: give --edits PATCH.yaml"
        )
    rank = MAX_RANK if max_rank is None else max_rank
    check_rank(rank)
    layers = min(LAYERS, len(base.layout.layers))
    modules = last_down_projections(base, layers)
    statistics = GradientStatistics.of(answer_gradients(base, modules, edits, _BATCH_TOKENS))
    site = Site(
        base=base.fingerprint,
        model=base.name,
        modules=modules,
        layer=len(base.layout.layers) - layers,
        statistics=statistics.digest,
        thinking=thinking_of(base.tokenizer),
        max_rank=rank,
        slots=slots,
        seed=seed,
    )
    return GradientSite(site, statistics)
