"""How far algebra alone can speak for a composition: constraints, growth of ‖Δ‖, interference pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.facts import subjects_of
from vllm_edit.composition.joint import Joint
from vllm_edit.composition.parts import Group, Part
from vllm_edit.deltas.delta import Delta, LowRank

MOST_PAIRS = 1000
"""The report lists so many pairs at most, those of the highest cosines; `pairs` counts all."""


def report_of(
    members: Sequence[CompiledPatch], parts: Sequence[Part], joint: Joint | None, delta: Delta
) -> dict[str, Any]:
    """The composition's report. members: as given; parts: what is left of them; delta: as saved.

    judged_by: "algebra", until a gate with the model says more.
    norm_growth: ‖Δ‖ / √(Σ ‖Δ_m‖²) over the members that take part. Unrelated keys give 1.
    constraint_error (with factors only): the most that an edit's shift at its own key differs from the shift that its
    member gave there when it was judged, ‖Δ k − Δ_m k‖ / ‖Δ_m k‖.
    pairs, interference: see `pairs_of`; the highest cosine (absolute) is `highest_cosine`.
    """
    taking_part = {part.member for part in parts}
    own = [member for member in members if member.name in taking_part]
    before = sum(_norm(part) ** 2 for member in own for part in member.delta.parts.values()) ** 0.5
    after = sum(_norm(part) ** 2 for part in delta.parts.values()) ** 0.5
    told: dict[str, Any] = {"judged_by": "algebra", "norm_growth": after / before if before else 1.0}
    if joint is not None:
        told |= pairs_of(joint)
    groups = [part for part in parts if isinstance(part, Group)]
    if len(groups) == len(parts):
        told["constraint_error"] = _constraint_error(own, groups, delta)
    return told


def pairs_of(joint: Joint) -> dict[str, Any]:
    """Interference between key groups, pair by pair, the highest first: subjects, first prompts, cosine.

    The cosine of a pair is the highest (absolute) between an edited column of one and one of the other.
    """
    edited = [place for place, share in enumerate(joint.system.shares) if share]
    owners = torch.tensor([joint.system.groups[place] for place in edited])
    cosines = joint.system.cosines[edited][:, edited].abs()  # [edited, edited]
    count = len(joint.groups)
    by_group = torch.zeros(count, len(edited), dtype=cosines.dtype)
    by_group.scatter_reduce_(0, owners[:, None].expand_as(cosines), cosines, "amax")  # in place
    highest = torch.zeros(count, count, dtype=cosines.dtype)
    highest.scatter_reduce_(1, owners[None, :].expand(count, -1), by_group, "amax")  # in place
    first, second = torch.triu_indices(count, count, offset=1)
    values, order = highest[first, second].sort(descending=True, stable=True)
    shown = []
    for value, place in zip(values[:MOST_PAIRS].tolist(), order[:MOST_PAIRS].tolist(), strict=True):
        two = joint.groups[int(first[place])], joint.groups[int(second[place])]
        subjects, prompts = [subjects_of(group.edits) for group in two], [group.edits[0].prompt for group in two]
        shown.append({"subjects": subjects, "prompts": prompts, "cosine": value})
    return {"highest_cosine": float(values[0]) if len(values) else 0.0, "pairs": len(values), "interference": shown}


def _constraint_error(members: Sequence[CompiledPatch], groups: Sequence[Group], delta: Delta) -> float:
    """The largest ‖Δ k − Δ_m k‖ / ‖Δ_m k‖ over the groups' edited columns."""
    keys: dict[str, list[torch.Tensor]] = {}
    for group in groups:
        keys.setdefault(group.member, []).extend(key for column, key, _ in group.columns if column.share)
    own = [(member, torch.stack(keys[member.name]).double()) for member in members]  # [columns, d_in] each
    wanted = torch.cat([_shift(member.delta, stacked) for member, stacked in own])  # [n, d_out]
    got = _shift(delta, torch.cat([stacked for _, stacked in own]))
    norms = wanted.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return float(((got - wanted).norm(dim=1) / norms).max())


def _shift(delta: Delta, keys: torch.Tensor) -> torch.Tensor:
    """Δ k for every key, [n, d_out] float64, of a delta of one module. keys: [n, d_in] float64."""
    (update,) = delta.parts.values()
    return (keys @ update.A.double().T) @ update.B.double().T


def _norm(part: LowRank) -> float:
    """‖B·A‖ from two Gram matrices, tr(BᵀB AAᵀ): good to some 1e-8 of ‖B‖‖A‖, and no QR of a tall factor."""
    B, A = part.B.double(), part.A.double()
    return float(((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt())
