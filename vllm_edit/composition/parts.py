"""Parts: the indivisible pieces of a compiled patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Column
from vllm_edit.composition.solver import interference
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit

Keyed = tuple[Column, torch.Tensor, torch.Tensor]
"""A column with its key and C⁻¹key, both [d_in]."""


@dataclass(frozen=True)
class Group:
    """A key group of a member: its columns, which share one residual at each module.

    residuals: [modules, d_out]. taken: columns of other members' groups with the same facts, which get these residuals
    too.
    """

    edits: tuple[Edit, ...]
    member: str
    columns: tuple[Keyed, ...]
    residuals: torch.Tensor
    taken: tuple[Keyed, ...] = ()

    @property
    def first(self) -> Keyed:
        """The first column at the last module, that of the plain prompt. Groups are compared there."""
        return next(column for column in self.columns if column[0].module == len(self.residuals) - 1)


@dataclass(frozen=True)
class Block:
    """A member without factors (MEND, KnowledgeEditor, fine-tuning): its whole delta."""

    edits: tuple[Edit, ...]
    member: str
    delta: Delta


Part = Group | Block


def parts_of(member: CompiledPatch) -> list[tuple[Part, tuple[int, ...]]]:
    """The parts of a compiled patch, each with its edits' indices."""
    manifest, factors = member.manifest, member.factors
    if factors is None:
        return [(Block(manifest.edits, member.name, member.delta), tuple(range(len(manifest.edits))))]
    columns: list[list[Keyed]] = [[] for _ in manifest.groups]
    for column, key, white in zip(manifest.columns, factors.keys, factors.whitened, strict=True):
        columns[column.group].append((column, key, white))
    d_out = factors.residuals.shape[1]
    residuals = factors.residuals.reshape(-1, len(manifest.groups), d_out)  # [modules, groups, d_out]
    return [
        (
            Group(tuple(manifest.edits[edit] for edit in group.edits), member.name, tuple(own), residuals[:, number]),
            group.edits,
        )
        for number, (group, own) in enumerate(zip(manifest.groups, columns, strict=True))
    ]


def coincide(first: Keyed, second: Keyed, cosine: float) -> bool:
    """True if the keys' whitened cosine exceeds `cosine`."""
    return bool(interference(torch.stack([first[1], second[1]]), torch.stack([first[2], second[2]]))[0, 1] > cosine)


def alike(first: Keyed, second: Keyed) -> bool:
    """True if both columns are of one module, and both are edited or both preserved."""
    return (first[0].share, first[0].module) == (second[0].share, second[0].module)


def subjects_of(edits: Sequence[Edit]) -> str:
    """The distinct subjects of the edits, for display."""
    return " / ".join(dict.fromkeys(edit.subject for edit in edits))
