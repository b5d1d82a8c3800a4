"""Merges key groups of several members: groups of one subject whose keys coincide become one group."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_edit.artefacts.manifest import Column
from vllm_edit.composition.parts import Group
from vllm_edit.composition.system import interference


def merged(groups: Sequence[Group], cosine: float) -> list[Group]:
    """Merge groups of one subject whose first keys' whitened cosine exceeds `cosine`; their residuals are *summed*.

    Least squares would average the residuals of keys that coincide (docs/methods.md).
    """
    kept: list[Group] = []
    by_name: dict[str, list[int]] = {}
    for group in groups:
        places = sorted({place for name in group.names for place in by_name.get(name, ())})
        near = next((place for place in places if _near(kept[place].columns[0], group.columns[0], cosine)), None)
        if near is None:
            near = len(kept)
            kept.append(group)
        else:
            kept[near] = _sum(kept[near], group, cosine)
        for name in group.names:
            by_name.setdefault(name, []).append(near)
    return kept


def _near(
    one: tuple[Column, torch.Tensor, torch.Tensor], other: tuple[Column, torch.Tensor, torch.Tensor], cosine: float
) -> bool:
    return bool(interference(torch.stack([one[1], other[1]]), torch.stack([one[2], other[2]]))[0, 1] > cosine)


def _sum(one: Group, other: Group, cosine: float) -> Group:
    """Merge two groups; each column of `other` is averaged with the column it coincides with, or is added."""
    columns = list(one.columns)
    for column in other.columns:
        alike = (place for place, held in enumerate(columns) if held[0].share == column[0].share)
        near = next((place for place in alike if _near(columns[place], column, cosine)), None)
        if near is None:
            columns.append(column)
        else:
            held, key, white = columns[near]
            columns[near] = (held, (key + column[1]) / 2, (white + column[2]) / 2)
    return Group(one.edits + other.edits, one.member, tuple(columns), one.residual + other.residual)
