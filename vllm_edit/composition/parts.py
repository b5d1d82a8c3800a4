"""Parts: the indivisible pieces of a compiled patch, and the selection that a composition consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Column
from vllm_edit.composition.conflicts import Settlement
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit, Fact
from vllm_edit.errors import EditError
from vllm_edit.names import short
from vllm_edit.text.quoting import quoted


@dataclass(frozen=True)
class Group:
    """A key group of a member: its columns (column, key, C⁻¹key), which share one residual at each module.

    residuals: [modules, d_out].
    """

    edits: tuple[Edit, ...]
    member: str
    columns: tuple[tuple[Column, torch.Tensor, torch.Tensor], ...]
    residuals: torch.Tensor

    @property
    def first(self) -> tuple[Column, torch.Tensor, torch.Tensor]:
        """The first column at the last module, that of the plain prompt. Groups are compared there."""
        return next(column for column in self.columns if column[0].module == len(self.residuals) - 1)

    @property
    def names(self) -> frozenset[str]:
        """The subject's normalised names."""
        return frozenset[str]().union(*(edit.names() for edit in self.edits))


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
    columns: list[list[tuple[Column, torch.Tensor, torch.Tensor]]] = [[] for _ in manifest.groups]
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


def select(members: Sequence[CompiledPatch], settlement: Settlement) -> list[Part]:
    """The parts of a composition: those without a losing edit, and each fact once.

    Neither their order nor the choice among parts with the same fact depends on the members' order.

    Raises:
        EditError: some but not all edits of a part are left out, or repeat facts of another part.
    """
    staying: list[Part] = []
    for number, member in enumerate(members):
        for part, indices in parts_of(member):
            leaving = [index for index in indices if (number, index) in settlement.leaving]
            if leaving and len(leaving) < len(indices):
                conflict = settlement.leaving[number, leaving[0]]
                raise EditError(
                    f"{quoted(conflict.left_out.prompt)} loses to {short(conflict.winner)}, but {_bound(part)}; "
                    f"compile the edits of {short(member.name)} that stay in a patch of their own"
                )
            if not leaving:
                staying.append(part)
    known: dict[Fact, Part] = {}
    chosen: list[Part] = []
    for part in sorted(staying, key=_content):
        ways = [edit.facts() for edit in part.edits]
        repeated = [next((known[way] for way in sorted(own) if way in known), None) for own in ways]
        other = next((earlier for earlier in repeated if earlier is not None), None)
        if other is None:
            chosen.append(part)
            known.update({way: part for own in ways for way in own})
        elif None in repeated:
            raise EditError(
                f"{short(other.member)} and {short(part.member)} share some facts of {subjects_of(part.edits)} but not "
                f"all, and {_bound(part)}; compile these edits in one patch"
            )
    return chosen


def subjects_of(edits: Sequence[Edit]) -> str:
    """The distinct subjects of the edits, for display."""
    return " / ".join(dict.fromkeys(edit.subject for edit in edits))


def _bound(part: Part) -> str:
    """Why a part cannot be split."""
    if isinstance(part, Group):
        return f"the edits of {subjects_of(part.edits)} in {short(part.member)} share one key group"
    return f"{short(part.member)} has no factors: its delta cannot be split"


def _content(part: Part) -> tuple[int, list[str], str]:
    """Sort key: larger parts first, so that only a smaller part can repeat facts of a larger one."""
    return -len(part.edits), sorted(edit.model_dump_json() for edit in part.edits), part.member
