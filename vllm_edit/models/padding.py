"""Token ids of different lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM


def padding_id(model: CausalLM, *candidates: int | None) -> int:
    """The first of the ids that the model's embedding has a row for, else 0. Any id works, because padding is masked.

    A tokenizer may have a padding token that was added without a row in the embedding.
    """
    rows = len(model.get_input_embeddings().weight)
    return next((number for number in candidates if number is not None and number < rows), 0)


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of ids to the longest.

    Args:
        rows: the ids.
        pad: the id to fill with.
        left: fill on the left, where generation continues on the right; otherwise on the right.

    Returns:
        The ids and the mask, which is 1 at tokens and 0 at padding: [rows, longest] each, int64.
    """
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return ids, mask
