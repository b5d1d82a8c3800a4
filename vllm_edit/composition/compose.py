"""Composition: several compiled patches solved *jointly* into one, from their stored factors, without the model.

A key at a site depends only on what lies below the site, which single-site edits leave alone; so for an equal base and
site (which holds C's digest and ridge) the linear constraints of separately compiled patches are those of one patch.
Answers may still interact in later layers: a composition that a person publishes is gated with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_edit.composition.closed_form import KEPT_COSINE, as_saved, constraint_error, interference, solve
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.patch import Edit
from vllm_edit.store.compiled import CompiledPatch, Factors
from vllm_edit.store.digest import digest_tensors
from vllm_edit.store.manifest import Column, KeyGroup, Manifest
from vllm_edit.store.site import Site
from vllm_edit.text import normalise


@dataclass(frozen=True)
class _Group:
    """A key group under way: its edits, its columns (column, key, C⁻¹key) and its residual [d_out]."""

    edits: tuple[Edit, ...]
    columns: tuple[tuple[Column, torch.Tensor, torch.Tensor], ...]
    residual: torch.Tensor

    @property
    def subject(self) -> str:
        return normalise(self.edits[0].subject)


def compose(
    members: Sequence[CompiledPatch],
    name: str | None = None,
    *,
    site: Site | None = None,
    damping: float | None = None,
    group_cosine: float = 0.9,
) -> CompiledPatch:
    """One compiled patch that does what all members do, its constraints solved jointly.

    name: the composition's; by default the members' patch names joined by "-".  site: given, its maximum rank is
    enforced.  damping: λ relative to the mean of diag(KᵀC⁻¹K); by default the members' own, which must then agree.
    group_cosine: groups of one subject (in different members) whose first keys' whitened cosine exceeds this become
    one group whose residual is the *sum* of theirs (least squares would average them).

    Raises:
        Incompatible: members of different bases or sites, or without factors, or a rank above the site's.
        EditError: no members, or members that give one subject and relation different targets.
    """
    damping = _common_damping(members, damping)
    _refuse_foreign(members)
    groups = _merged([group for member in members for group in _groups_of(member)], group_cosine)
    if site is not None and len(groups) > site.max_rank:
        raise Incompatible(
            f"the composition needs rank {len(groups)}, the site allows {site.max_rank}; compose fewer patches, or "
            "make a store whose site has a higher maximum rank"
        )
    edits = tuple(edit for group in groups for edit in group.edits)
    numbered = [
        (column.model_copy(update={"group": index}), key, white)
        for index, group in enumerate(groups)
        for column, key, white in group.columns
    ]
    edited = [(key, white) for column, key, white in numbered if column.share]
    kept = [one for one in numbered if one[0].share or not _contradicts(one[1:], edited)]
    kept = _thinned(kept, room=numbered[0][1].numel() // 4)
    columns = [column for column, *_ in kept]
    factors = Factors(
        keys=torch.stack([key for _, key, _ in kept]),
        whitened=torch.stack([white for *_, white in kept]),
        residuals=torch.stack([group.residual for group in groups]),
    )
    group_of, shares = [column.group for column in columns], [column.share for column in columns]
    update = solve(factors.keys, factors.whitened, factors.residuals, group_of, damping, shares)
    first = members[0].manifest
    delta = Delta({first.modules[0]: as_saved(update)})
    starts = [sum(len(group.edits) for group in groups[:index]) for index in range(len(groups))]
    manifest = Manifest(
        kind="composition",
        patch=name or "-".join(dict.fromkeys(member.manifest.patch for member in members))[:63],
        method=first.method,
        base=first.base,
        site=first.site,
        modules=first.modules,
        edits=edits,
        members=tuple(sorted(member.name for member in members)),
        settings={"damping": damping, "group_cosine": group_cosine},
        groups=tuple(
            KeyGroup(edits=tuple(range(start, start + len(group.edits))))
            for start, group in zip(starts, groups, strict=True)
        ),
        columns=tuple(columns),
        rank=delta.rank,
        adapter=delta.digest,
        factors=digest_tensors(factors.tensors()),
    )
    return CompiledPatch(manifest, delta, factors, report=_report(members, update, factors, columns, groups))


def _common_damping(members: Sequence[CompiledPatch], damping: float | None) -> float:
    if not members:
        raise EditError("nothing to compose; expected at least one compiled patch")
    found = sorted({float(member.manifest.settings.get("damping", 0.0)) for member in members})
    if damping is None and len(found) > 1:
        raise EditError(f"the patches were compiled with different damping ({found}); say which one to compose with")
    return found[0] if damping is None else damping


def _refuse_foreign(members: Sequence[CompiledPatch]) -> None:
    """Collect every reason why the members cannot be composed, and raise once."""
    first, problems = members[0], []
    for member in members:
        if member.manifest.base != first.manifest.base:
            problems.append(f"{member.name} is for base {member.manifest.base}, {first.name} for {first.manifest.base}")
        elif member.manifest.site != first.manifest.site:
            problems.append(f"{member.name} is for site {member.manifest.site}, {first.name} for {first.manifest.site}")
        if member.factors is None:
            problems.append(
                f"{member.name} ({member.manifest.method}) has no factors: recompile its edits in one patch"
            )
    if problems:
        raise Incompatible("; ".join(problems))
    seen: dict[tuple[str, str], tuple[Edit, CompiledPatch]] = {}
    for member in members:
        for edit in member.manifest.edits:
            subject_relation = (normalise(edit.subject), edit.relation or edit.prompt)
            earlier, owner = seen.setdefault(subject_relation, (edit, member))
            if normalise(earlier.target_new) != normalise(edit.target_new):
                problems.append(
                    f"{edit.prompt!r}: {earlier.target_new!r} in {owner.name}, {edit.target_new!r} in {member.name}"
                )
    if problems:
        raise EditError("conflict, decide for one: " + "; ".join(problems))


def _groups_of(member: CompiledPatch) -> list[_Group]:
    factors, manifest = member.factors, member.manifest
    if factors is None:
        raise Incompatible(f"{member.name} has no factors")
    return [
        _Group(
            edits=tuple(manifest.edits[edit] for edit in group.edits),
            columns=tuple(
                (column, factors.keys[place], factors.whitened[place])
                for place, column in enumerate(manifest.columns)
                if column.group == index
            ),
            residual=factors.residuals[index],
        )
        for index, group in enumerate(manifest.groups)
    ]


def _merged(groups: Sequence[_Group], group_cosine: float) -> list[_Group]:
    """The groups in an order that does not depend on the members', without repeats, coinciding ones put together.

    Raises:
        EditError: two groups share some of their edits but not all.
    """
    kept: list[_Group] = []
    for group in sorted(
        groups, key=lambda one: (-len(one.edits), *sorted(edit.model_dump_json() for edit in one.edits))
    ):
        facts = {_fact(edit) for edit in group.edits}
        known = [other for other in kept if facts & {_fact(edit) for edit in other.edits}]
        if known and not any(facts <= {_fact(edit) for edit in other.edits} for other in known):
            raise EditError(
                f"two key groups of {group.edits[0].subject!r} share some of their facts but not all; compile these "
                "edits in one patch"
            )
        if known:
            continue
        near = next((place for place, other in enumerate(kept) if _coincide(group, other, group_cosine)), None)
        if near is None:
            kept.append(group)
        else:
            kept[near] = _sum(kept[near], group, group_cosine)
    return kept


def _fact(edit: Edit) -> tuple[str, str]:
    return normalise(edit.subject), edit.relation or edit.prompt


def _coincide(one: _Group, other: _Group, cosine: float) -> bool:
    return one.subject == other.subject and _cosine(one.columns[0], other.columns[0]) > cosine


def _thinned(
    numbered: Sequence[tuple[Column, torch.Tensor, torch.Tensor]], room: int
) -> list[tuple[Column, torch.Tensor, torch.Tensor]]:
    """The columns with kept ones left out evenly where there are more than `room` besides the edited ones.

    Every column takes one dimension of d_in: a hundred patches that each keep ten keys would leave none for the edits.
    """
    places = [place for place, one in enumerate(numbered) if not one[0].share]
    chosen = set(places if len(places) <= room else (places[step * len(places) // room] for step in range(room)))
    return [one for place, one in enumerate(numbered) if one[0].share or place in chosen]


def _contradicts(kept: tuple[torch.Tensor, torch.Tensor], edited: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """True if a key to be kept coincides with an edited one: another member changes what this one would keep."""
    keys = torch.stack([kept[0], *(key for key, _ in edited)])
    whitened = torch.stack([kept[1], *(white for _, white in edited)])
    return bool(interference(keys, whitened)[0, 1:].max() > KEPT_COSINE)


def _cosine(one: tuple[Column, torch.Tensor, torch.Tensor], other: tuple[Column, torch.Tensor, torch.Tensor]) -> float:
    return float(interference(torch.stack([one[1], other[1]]), torch.stack([one[2], other[2]]))[0, 1])


def _sum(one: _Group, other: _Group, cosine: float) -> _Group:
    """One group with both residuals' sum; each of `other`'s columns joins the one it coincides with, or is added."""
    columns = list(one.columns)
    for column in other.columns:
        alike = (p for p, held in enumerate(columns) if held[0].share == column[0].share)
        near = next((place for place in alike if _cosine(columns[place], column) > cosine), None)
        if near is None:
            columns.append(column)
        else:
            held, key, white = columns[near]
            columns[near] = (held, (key + column[1]) / 2, (white + column[2]) / 2)
    return _Group(one.edits + other.edits, tuple(columns), one.residual + other.residual)


def _report(
    members: Sequence[CompiledPatch],
    update: LowRank,
    factors: Factors,
    columns: Sequence[Column],
    groups: list[_Group],
) -> dict[str, object]:
    """How far algebra alone vouches for the composition: missed constraints, growth of ‖Δ‖, interference."""
    cosines = interference(factors.keys, factors.whitened).abs()
    members_norm = sum(part.norm() ** 2 for member in members for part in member.delta.parts.values()) ** 0.5
    subjects = [groups[column.group].subject if column.share else None for column in columns]
    other = torch.tensor([[None not in (one, two) and one != two for two in subjects] for one in subjects])
    group_of, shares = [column.group for column in columns], [column.share for column in columns]
    return {
        "judged_by": "algebra",
        "constraint_error": float(constraint_error(update, factors.keys, factors.residuals, group_of, shares).max()),
        "norm_growth": update.norm() / members_norm if members_norm else 1.0,
        "interference": float(cosines[other].max()) if other.any() else 0.0,
    }
