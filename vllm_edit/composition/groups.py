"""Key groups of several members: those of one subject whose keys coincide are merged, and all are solved together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_edit.artefacts.compiled import Factors
from vllm_edit.artefacts.manifest import Column
from vllm_edit.composition.parts import Group
from vllm_edit.composition.solver import System, as_saved, interference, satisfiable, solve
from vllm_edit.deltas.delta import LowRank


@dataclass(frozen=True)
class Joint:
    """Key groups solved together. `update` is as an adapter stores it: B [d_out, groups], A [groups, d_in] float32."""

    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
    system: System
    residuals: torch.Tensor
    update: LowRank

    @property
    def factors(self) -> Factors:
        return Factors(self.system.keys, self.system.whitened, self.residuals)


def merged(groups: Sequence[Group], cosine: float) -> list[Group]:
    """Merge groups of one subject whose first keys' whitened cosine exceeds `cosine`; their residuals are *summed*.

    Least squares would average the residuals of keys that coincide (docs/methods.md).
    """
    merged: list[Group] = []
    by_name: dict[str, list[int]] = {}
    for group in groups:
        places = sorted({place for name in group.names for place in by_name.get(name, ())})
        near = next((place for place in places if _near(merged[place].columns[0], group.columns[0], cosine)), None)
        if near is None:
            near = len(merged)
            merged.append(group)
        else:
            merged[near] = _sum(merged[near], group, cosine)
        for name in group.names:
            by_name.setdefault(name, []).append(near)
    return merged


def solve_jointly(groups: Sequence[Group], damping: float) -> Joint:
    """Solve one update for all groups. Preserved columns that do not fit beside the others are left out."""
    numbered = [
        (column.model_copy(update={"group": index}), key, white)
        for index, group in enumerate(groups)
        for column, key, white in group.columns
    ]
    keys, whitened = torch.stack([key for _, key, _ in numbered]), torch.stack([white for *_, white in numbered])
    every = [column for column, *_ in numbered]
    places = satisfiable(
        keys, whitened, [column.group for column in every], [column.share for column in every], [c.form for c in every]
    )
    columns = [every[place] for place in places]
    numbers, shares = [column.group for column in columns], [column.share for column in columns]
    system = System.of(keys[places], whitened[places], numbers, damping, shares)
    residuals = torch.stack([group.residual for group in groups])
    return Joint(tuple(groups), tuple(columns), system, residuals, as_saved(solve(system, residuals)))


def _near(
    first: tuple[Column, torch.Tensor, torch.Tensor], second: tuple[Column, torch.Tensor, torch.Tensor], cosine: float
) -> bool:
    return bool(interference(torch.stack([first[1], second[1]]), torch.stack([first[2], second[2]]))[0, 1] > cosine)


def _sum(first: Group, second: Group, cosine: float) -> Group:
    """Merge two groups; each column of `second` is averaged with the column it coincides with, or is added."""
    columns = list(first.columns)
    for column in second.columns:
        alike = (place for place, held in enumerate(columns) if held[0].share == column[0].share)
        near = next((place for place in alike if _near(columns[place], column, cosine)), None)
        if near is None:
            columns.append(column)
        else:
            held, key, white = columns[near]
            columns[near] = (held, (key + column[1]) / 2, (white + column[2]) / 2)
    return Group(first.edits + second.edits, first.member, tuple(columns), first.residual + second.residual)
