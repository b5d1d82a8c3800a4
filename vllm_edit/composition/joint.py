"""Solves the key groups of several members together, from their stored factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_edit.artefacts.compiled import Factors
from vllm_edit.artefacts.manifest import Column
from vllm_edit.composition.closed_form import as_saved, solve
from vllm_edit.composition.parts import Group
from vllm_edit.composition.preserved import satisfiable
from vllm_edit.composition.system import System
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
