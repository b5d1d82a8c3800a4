"""Key groups of several members: those of one subject whose keys coincide are merged, and all are solved together.

With several modules, each module has a system of its own. An edit's key at a later module was measured with the edit's
own updates at the earlier modules. The joint solve there maps every member's key to that member's own residual. So at
the site's token the later keys are those that were measured, and by induction over the modules all linear constraints
compose as at one module (at λ = 0; damping changes the residuals by the same small part as in a joint compilation).

Two members about one subject are the exception. Their keys coincide at the first module and have two residuals there,
so the joint solve meets neither. If the keys coincide at the last module too, the groups are merged. If they do not,
because each was measured there under its own member's updates only, the members are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_edit.artefacts.compiled import Factors
from vllm_edit.artefacts.manifest import Column
from vllm_edit.composition.parts import Group, subjects_of
from vllm_edit.composition.solver import ROOM, System, as_saved, interference, satisfiable, solve
from vllm_edit.deltas.delta import LowRank
from vllm_edit.errors import Incompatible
from vllm_edit.names import short


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

    Least squares would average the residuals of keys that coincide (docs/methods.md).

    Raises:
        Incompatible: groups of one subject in two members coincide at the first module, but not at the last.
    """
    sums: list[_Sum] = []
    by_name: dict[str, list[int]] = {}
    problems: list[str] = []
    for group in groups:
        places = sorted({place for name in group.names for place in by_name.get(name, ())})
        near = next((place for place in places if _near(sums[place].group.first, group.first, cosine)), None)
        others = (other for place in places if place != near for other in sums[place].groups)
        problems += [_apart(other, group) for other in others if _only_first_near(other, group, cosine)]
        if near is None:
            near = len(sums)
            sums.append(_Sum(group, (1,) * len(group.columns), (group,)))
        else:
            sums[near] = sums[near].plus(group, cosine)
        for name in group.names:
            by_name.setdefault(name, []).append(near)
    if problems:
        raise Incompatible("\n".join(dict.fromkeys(problems)))
    return [found.group for found in sums]


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


@dataclass(frozen=True)
class _Sum:
    """Groups merged into one. counts: for each of its columns, the number of columns whose mean it is."""

    group: Group
    counts: tuple[int, ...]
    groups: tuple[Group, ...]

    def plus(self, other: Group, cosine: float) -> _Sum:
        """Merge one more group; each of its columns is averaged with the column it coincides with, or is added."""
        columns, counts = list(self.group.columns), list(self.counts)
        for column in other.columns:
            alike = (place for place, held in enumerate(columns) if _alike(held[0], column[0]))
            near = next((place for place in alike if _near(columns[place], column, cosine)), None)
            if near is None:
                columns.append(column)
                counts.append(1)
            else:
                held, key, white = columns[near]
                count, more = counts[near], counts[near] + 1
                columns[near] = (held, (count * key + column[1]) / more, (count * white + column[2]) / more)
                counts[near] = more
        edits, residuals = self.group.edits + other.edits, self.group.residuals + other.residuals
        return _Sum(Group(edits, self.group.member, tuple(columns), residuals), tuple(counts), (*self.groups, other))


def _only_first_near(first: Group, second: Group, cosine: float) -> bool:
    """True if two unmerged groups of different members coincide at the first of several modules.

    The groups of one member were measured under the updates of both.
    """
    if first.member == second.member or len(first.residuals) == 1:
        return False
    return _near(_at_first_module(first), _at_first_module(second), cosine)


def _at_first_module(group: Group) -> tuple[Column, torch.Tensor, torch.Tensor]:
    return next(column for column in group.columns if column[0].module == 0)


def _apart(first: Group, second: Group) -> str:
    return (
        f"{short(first.member)} and {short(second.member)} edit one subject, {subjects_of(first.edits)}: their keys "
        "coincide at the site's first layer and differ at its last, so they cannot be solved together; compile these "
        "edits in one patch"
    )


def _near(
    first: tuple[Column, torch.Tensor, torch.Tensor], second: tuple[Column, torch.Tensor, torch.Tensor], cosine: float
) -> bool:
    return bool(interference(torch.stack([first[1], second[1]]), torch.stack([first[2], second[2]]))[0, 1] > cosine)


def _alike(first: Column, second: Column) -> bool:
    return (first.share, first.module) == (second.share, second.module)
