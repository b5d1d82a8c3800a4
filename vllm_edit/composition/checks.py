"""What algebra can check about a composition without the model: constraints, growth of ‖Δ‖, interference by pair.

These checks are the gate of a composition made on demand. The model gates a composition that a person publishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.reports import CompositionReport, Interference
from vllm_edit.composition.groups import Joint, solve_jointly
from vllm_edit.composition.parts import Group, Part, subjects_of
from vllm_edit.composition.solver import ROOM
from vllm_edit.deltas.delta import Delta, LowRank

MOST_PAIRS = 1000
"""Maximum number of pairs in the report, those with the highest cosines; `pairs` counts all."""


@dataclass(frozen=True)
class Limits:
    """Limits on how far a composition may differ from its members, each of which was gated alone."""

    constraint_error: float = 0.2
    """Maximum relative difference between an edit's shift at its own key and its member's shift there: residuals
    are trained to a margin, and most of it remains after a change of a fifth."""
    norm_growth: float = 2.0
    """Maximum growth of ‖Δ‖. Two keys of cosine c with unrelated residuals grow it by 1/√(1 − c²): 2 means c = 0.87,
    near the cosine from which keys count as equal (`PRESERVED_COSINE`)."""


DEFAULT_LIMITS = Limits()


def report_of(
    members: Sequence[CompiledPatch], parts: Sequence[Part], joint: Joint | None, delta: Delta, kept_energy: float = 1.0
) -> CompositionReport:
    """The composition's report.

    Args:
        members: all members.
        parts: their parts that the composition uses.
        joint: the joint solution, if any part has factors.
        delta: the composition's delta, as saved.
        kept_energy: share of ‖Δ‖² that remains after truncation.
    """
    taking_part = {part.member for part in parts}
    own = [member for member in members if member.name in taking_part]
    before = sum(_norm(update) ** 2 for member in own for update in _remaining(member, parts)) ** 0.5
    after = sum(_norm(part) ** 2 for part in delta.parts.values()) ** 0.5
    groups = [part for part in parts if isinstance(part, Group)]
    report = CompositionReport(
        norm_growth=after / before if before else 1.0,
        constraint_error=_constraint_error(own, groups, delta) if len(groups) == len(parts) else None,
        kept_energy=kept_energy,
    )
    return report if joint is None else report.model_copy(update=pairs_of(joint))


def pairs_of(joint: Joint) -> dict[str, Any]:
    """Interference between key groups: the fields `highest_cosine`, `pairs` and `interference` of the report.

    The cosine of a pair is the highest (absolute) between their edited columns at the last module.
    """
    system = joint.systems[-1]
    edited = [place for place, share in enumerate(system.shares) if share]
    owners = torch.tensor([system.groups[place] for place in edited])
    cosines = system.cosines[edited][:, edited].abs()  # [edited, edited]
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
        subjects = subjects_of(two[0].edits), subjects_of(two[1].edits)
        prompts = two[0].edits[0].prompt, two[1].edits[0].prompt
        shown.append(Interference(subjects=subjects, prompts=prompts, cosine=value))
    return {
        "highest_cosine": float(values[0]) if len(values) else 0.0,
        "pairs": len(values),
        "interference": tuple(shown),
    }


def vouch(composition: CompiledPatch, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Reasons why a composition may not be served without a gate by the model; empty if it may."""
    report = composition.algebra
    if report is None or report.constraint_error is None:
        return ["it has members without factors, so only a gate with the model can check their combination"]
    problems = []
    if not report.constraint_error <= limits.constraint_error:  # also for NaN
        problems.append(
            f"an edit's shift at its own key differs by {report.constraint_error:.3f} from its member's, at most "
            f"{limits.constraint_error:g} is allowed"
        )
    if not report.norm_growth <= limits.norm_growth:
        problems.append(f"‖Δ‖ grows {report.norm_growth:.2f}-fold, at most {limits.norm_growth:g}-fold is allowed")
    return problems


def _remaining(member: CompiledPatch, parts: Sequence[Part]) -> Sequence[LowRank]:
    """A member's update at each module without the edits that the composition left out: its other groups' solve."""
    groups = [part for part in parts if isinstance(part, Group) and part.member == member.name]
    if len(groups) in (0, len(member.manifest.groups)):
        return tuple(member.delta.parts.values())
    room = ROOM if member.manifest.room is None else member.manifest.room
    return solve_jointly(groups, member.manifest.damping, room).updates


def _constraint_error(members: Sequence[CompiledPatch], groups: Sequence[Group], delta: Delta) -> float:
    """The largest ‖Δ k − Δ_m k‖ / ‖Δ_m k‖ over the groups' edited columns, at any module."""
    largest = 0.0
    for place, (module, update) in enumerate(delta.parts.items()):
        keys: dict[str, list[torch.Tensor]] = {}
        for group in groups:
            edited = (key for column, key, _ in group.columns if column.share and column.module == place)
            keys.setdefault(group.member, []).extend(edited)
        own = [(member.delta.parts[module], torch.stack(keys[member.name]).double()) for member in members]
        wanted = torch.cat([_shift(mine, stacked) for mine, stacked in own])  # [n, d_out]
        got = _shift(update, torch.cat([stacked for _, stacked in own]))
        norms = wanted.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        largest = max(largest, float(((got - wanted).norm(dim=1) / norms).max()))
    return largest


def _shift(update: LowRank, keys: torch.Tensor) -> torch.Tensor:
    """Δ k for every key, [n, d_out] float64. `keys` is [n, d_in] float64."""
    return (keys @ update.A.double().T) @ update.B.double().T


def _norm(part: LowRank) -> float:
    """‖B·A‖ from two Gram matrices, tr(BᵀB AAᵀ): accurate to about 1e-8 ‖B‖‖A‖, without a QR of a tall factor."""
    B, A = part.B.double(), part.A.double()
    return float(((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt())
