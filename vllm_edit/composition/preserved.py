"""Preserved columns: keys that an update must not move, and how to choose those that fit beside the edited keys.

Compiling and composing share this, so that a patch compiled jointly and its parts composed preserve the same keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_edit.composition.system import interference

KEPT_COSINE = 0.9
"""A preserved key contradicts an edited key if their whitened cosine exceeds this."""
SAME_COSINE = 0.999
"""Two preserved keys count as equal if their whitened cosine exceeds this: both would be linearly dependent."""
OPENING = "opening"
"""The form of edited columns that are dropped where they clash with a column of another group."""
_ROOM = 4  # preserved columns take at most 1/_ROOM of the d_in dimensions


def satisfiable(
    keys: torch.Tensor, whitened: torch.Tensor, groups: Sequence[int], shares: Sequence[float], forms: Sequence[str]
) -> list[int]:
    """Indices of the columns whose constraints one update can satisfy together, ascending.

    All edited columns are among them, except clashing openings.

    Args:
        keys: K [n, d_in].
        whitened: C⁻¹K [n, d_in].
        groups: each column's group.
        shares: each column's share.
        forms: each column's form.
    """
    # First limit the number of columns: it bounds the Gram product below.
    chosen = within_room(shares, keys.shape[1])
    cosines = interference(keys[chosen], whitened[chosen])
    agreed = agreeing(cosines, [groups[place] for place in chosen], [forms[place] for place in chosen])
    chosen, cosines = [chosen[place] for place in agreed], cosines[agreed][:, agreed]
    return [chosen[place] for place in keepable(cosines, [shares[place] for place in chosen])]


def within_room(shares: Sequence[float], d_in: int) -> list[int]:
    """Indices of the columns after thinning the preserved ones (share 0) evenly to at most a quarter of d_in.

    Every column uses one dimension of d_in: a hundred patches with ten preserved keys each would leave none for edits.
    """
    room = d_in // _ROOM
    kept = [place for place, share in enumerate(shares) if not share]
    if len(kept) > room:
        kept = [kept[step * len(kept) // room] for step in range(room)]
    chosen = set(kept)
    return [place for place, share in enumerate(shares) if share or place in chosen]


def agreeing(cosines: torch.Tensor, groups: Sequence[int], forms: Sequence[str]) -> list[int]:
    """Indices of the columns, without those of form `OPENING` that coincide with a column of another group.

    Two edits of one subject have the same key where the subject begins a text, but two residuals: neither constraint
    can be satisfied there.

    Args:
        cosines: the columns' `interference` [n, n].
        groups: each column's group.
        forms: each column's form.
    """
    number = torch.tensor(list(groups))
    optional = torch.tensor([form == OPENING for form in forms])
    clashes = ((cosines.abs() > KEPT_COSINE) & (number[:, None] != number[None, :])).any(dim=1)
    return [place for place, out in enumerate((optional & clashes).tolist()) if not out]


def keepable(cosines: torch.Tensor, shares: Sequence[float]) -> list[int]:
    """Indices of the columns, without preserved ones that contradict an edited column or repeat a preserved one.

    A key that one patch preserves and another edits cannot be preserved.

    Args:
        cosines: the columns' `interference` [n, n].
        shares: each column's share.
    """
    edited = torch.tensor([share > 0 for share in shares])
    contradicts = (cosines[:, edited] > KEPT_COSINE).any(dim=1)
    repeats = ((cosines > SAME_COSINE).tril(-1) & ~edited[None, :]).any(dim=1)
    left_out = ~edited & (contradicts | repeats)
    return [place for place, out in enumerate(left_out.tolist()) if not out]
