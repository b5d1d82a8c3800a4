"""Kept columns: keys that an update must not move. Which of them can be kept together with what is edited.

Shared by compiling and composing, so that a patch compiled jointly and its parts composed keep the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_edit.composition.system import interference

KEPT_COSINE = 0.9
"""A key to be kept whose whitened cosine with an edited one exceeds this contradicts it."""
SAME_COSINE = 0.999
"""Two keys to be kept whose whitened cosine exceeds this are one: kept twice, they would be linearly dependent."""
OPENING = "opening"
"""The form of columns that are edited too, but give way to the columns of other groups."""
_ROOM = 4  # kept columns take at most 1/_ROOM of the d_in dimensions


def satisfiable(
    keys: torch.Tensor, whitened: torch.Tensor, groups: Sequence[int], shares: Sequence[float], forms: Sequence[str]
) -> list[int]:
    """Places of the columns that one update can meet together, in ascending order. All edited ones are among them,
    but for openings that clash.

    keys, whitened: K and C⁻¹K, [n, d_in]. groups, shares, forms: of each column.
    """
    # The room first: it bounds the Gram product below, however many keys are kept.
    chosen = within_room(shares, keys.shape[1])
    cosines = interference(keys[chosen], whitened[chosen])
    agreed = agreeing(cosines, [groups[place] for place in chosen], [forms[place] for place in chosen])
    chosen, cosines = [chosen[place] for place in agreed], cosines[agreed][:, agreed]
    return [chosen[place] for place in keepable(cosines, [shares[place] for place in chosen])]


def within_room(shares: Sequence[float], d_in: int) -> list[int]:
    """Places of the columns with kept ones (share 0) left out evenly where they are more than a quarter of d_in.

    Every column takes one dimension of d_in: a hundred patches that each keep ten keys would leave none for the edits.
    """
    room = d_in // _ROOM
    kept = [place for place, share in enumerate(shares) if not share]
    if len(kept) > room:
        kept = [kept[step * len(kept) // room] for step in range(room)]
    chosen = set(kept)
    return [place for place, share in enumerate(shares) if share or place in chosen]


def agreeing(cosines: torch.Tensor, groups: Sequence[int], forms: Sequence[str]) -> list[int]:
    """Places of the columns without those of form `OPENING` that coincide with a column of another group.

    cosines: [n, n], the columns' `interference`. Two edits of one subject have one key where it begins a text, and two
    residuals: neither can be met there.
    """
    number = torch.tensor(list(groups))
    gives_way = torch.tensor([form == OPENING for form in forms])
    clashes = ((cosines.abs() > KEPT_COSINE) & (number[:, None] != number[None, :])).any(dim=1)
    return [place for place, out in enumerate((gives_way & clashes).tolist()) if not out]


def keepable(cosines: torch.Tensor, shares: Sequence[float]) -> list[int]:
    """Places of the columns without kept ones that contradict an edited one or repeat an earlier kept one.

    cosines: [n, n], the columns' `interference`. A key that one patch keeps and another edits cannot be kept.
    """
    edited = torch.tensor([share > 0 for share in shares])
    contradicts = (cosines[:, edited] > KEPT_COSINE).any(dim=1)
    repeats = ((cosines > SAME_COSINE).tril(-1) & ~edited[None, :]).any(dim=1)
    left_out = ~edited & (contradicts | repeats)
    return [place for place, out in enumerate(left_out.tolist()) if not out]
