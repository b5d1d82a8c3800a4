"""Key groups of several members: those of one subject whose keys coincide are merged, and all are solved together.

With several modules, each module has a system of its own. An edit's key at a later module was measured with the edit's
own updates at the earlier modules. The joint solve there maps every member's key to that member's own residual. So at
the site's token the later keys are those that were measured, and by induction over the modules all linear constraints
compose as at one module (at λ = 0; damping changes the residuals by the same small part as in a joint compilation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from vllm_edit.artefacts.compiled import Factors
from vllm_edit.artefacts.manifest import Column
from vllm_edit.composition.parts import Group, alike, coincide
from vllm_edit.composition.solver import ROOM, System, as_saved, satisfiable, solve
from vllm_edit.deltas.delta import LowRank


@dataclass(frozen=True)
class Joint:
    """Key groups solved together, at every module.

    columns: those of all systems, one system after the other. systems, updates: one for each module. An update is as an
    adapter stores it: B [d_out, groups], A [groups, d_in] float32. residuals: [modules, groups, d_out].
    """

    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
    systems: tuple[System, ...]
    residuals: torch.Tensor
    updates: tuple[LowRank, ...]

    @property
    def factors(self) -> Factors:
        keys, whitened = (
            torch.cat([system.keys for system in self.systems]),
            torch.cat([system.whitened for system in self.systems]),
        )
        return Factors(keys, whitened, self.residuals.flatten(0, 1))


def merged(groups: Sequence[Group], cosine: float) -> list[Group]:
    """Merge groups of one subject whose first keys' whitened cosine exceeds `cosine`; their residuals are *summed*.

    Least squares would average the residuals of keys that coincide (docs/methods.md). Groups that only share an alias
    may be of two subjects, and are not merged.
    """
    merged: list[Group] = []
    by_name: dict[str, list[int]] = {}
    for group in (_whole(group) for group in groups):
        names = frozenset[str]().union(*(edit.names() for edit in group.edits))
        places = sorted({place for name in names for place in by_name.get(name, ())})
        near = next((place for place in places if _are_one(merged[place], group, cosine)), None)
        if near is None:
            near = len(merged)
            merged.append(group)
        else:
            merged[near] = _sum(merged[near], group, cosine)
        for name in names:
            by_name.setdefault(name, []).append(near)
    return merged


def solve_jointly(groups: Sequence[Group], damping: float, room: float = ROOM) -> Joint:
    """Solve one update for all groups at each module.

    Preserved columns that do not fit beside the others are left out. room: see `composition.solver.satisfiable`.
    """
    residuals = torch.stack([group.residuals for group in groups], dim=1)  # [modules, groups, d_out]
    columns, systems, updates = list[Column](), list[System](), list[LowRank]()
    for module, own in enumerate(residuals):
        chosen, system = _system(groups, module, damping, room)
        columns += chosen
        systems.append(system)
        updates.append(as_saved(solve(system, own)))
    return Joint(tuple(groups), tuple(columns), tuple(systems), residuals, tuple(updates))


def _system(groups: Sequence[Group], module: int, damping: float, room: float) -> tuple[list[Column], System]:
    """The columns of all groups at one module that fit together, and their system."""
    numbered = [
        (column.model_copy(update={"group": index}), key, white)
        for index, group in enumerate(groups)
        for column, key, white in group.columns
        if column.module == module
    ]
    keys, whitened = torch.stack([key for _, key, _ in numbered]), torch.stack([white for *_, white in numbered])
    every = [column for column, *_ in numbered]
    owners, forms = [column.group for column in every], [column.form for column in every]
    places = satisfiable(keys, whitened, owners, [column.share for column in every], forms, room)
    columns = [every[place] for place in places]
    numbers, shares = [column.group for column in columns], [column.share for column in columns]
    return columns, System.of(keys[places], whitened[places], numbers, damping, shares)


def _whole(group: Group) -> Group:
    """The group with the columns that it took from others among its own."""
    return replace(group, columns=group.columns + group.taken, taken=())


def _are_one(first: Group, second: Group, cosine: float) -> bool:
    """True if the groups are of one subject, and their first keys coincide."""
    pairs = product(first.edits, second.edits)
    return coincide(first.first, second.first, cosine) and any(one.shares_subject_with(other) for one, other in pairs)


def _sum(first: Group, second: Group, cosine: float) -> Group:
    """Merge two groups; each column of `second` is averaged with the column it coincides with, or is added."""
    columns = list(first.columns)
    for column in second.columns:
        places = (place for place, held in enumerate(columns) if alike(held, column))
        near = next((place for place in places if coincide(columns[place], column, cosine)), None)
        if near is None:
            columns.append(column)
        else:
            held, key, white = columns[near]
            columns[near] = (held, (key + column[1]) / 2, (white + column[2]) / 2)
    return Group(first.edits + second.edits, first.member, tuple(columns), first.residuals + second.residuals)
