"""Composition: several compiled patches solved *jointly* into one, from their stored factors, without the model.

A key at a site depends only on the layers below the site, which single-site edits do not change. So for an equal base
and site (with C's digest and ridge) the linear constraints of separately compiled patches are those of one patch. For a
site of several modules see `groups`.
Answers may still interact in later layers: the model gates a composition that a person publishes, algebra alone gates a
composition made on demand (`checks`).
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import KeyGroup, Manifest
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.checks import report_of
from vllm_edit.composition.conflicts import Settlement, settle
from vllm_edit.composition.groups import Joint, merged, solve_jointly
from vllm_edit.composition.parts import Block, Group, Part
from vllm_edit.composition.selection import select
from vllm_edit.composition.solver import ROOM, as_saved
from vllm_edit.deltas.delta import Delta
from vllm_edit.digest import digest_tensors
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.json_value import JSONObject
from vllm_edit.names import check_patch, short
from vllm_edit.patch import Gate

_LONGEST_NAME = 63


def compose(
    members: Sequence[CompiledPatch],
    name: str | None = None,
    *,
    site: Site | None = None,
    policy: str | None = None,
    truncate: bool = False,
    damping: float | None = None,
    group_cosine: float = 0.9,
) -> CompiledPatch:
    """Join compiled patches into one with the edits of all, without a model. Nothing is saved.

    Members with factors are solved jointly; deltas of members without factors (MEND, fine-tuning …) are
    concatenated.

    Args:
        members: compiled patches of one base and site. Without conflicts their order makes no difference.
        name: the composition's patch name; by default the members' joined by "-".
        site: if given, its maximum rank is enforced.
        policy: which member wins a conflict, first, last, or a member's name; None refuses conflicts.
        truncate: above the site's rank, use the best approximation instead of refusing; `algebra.kept_energy` is
            the fraction of ‖Δ‖² that remains.
        damping: λ relative to the mean k̄ᵀC⁻¹k̄ of a group's columns; by default the members' own, which must then agree.
        group_cosine: groups of one subject (in different members) whose first keys' whitened cosine exceeds this
            become one group whose residual is the *sum* of theirs (least squares would average them).

    Returns:
        The composition. Its `algebra` says how far it differs from its members.

    Raises:
        Incompatible: members of different bases or sites, a rank above the site's, or, at a site of several modules,
            two members about one subject whose keys coincide at the first module only.
        NotFound: the policy names none of the members.
        EditError: no members, undecided conflicts, edits to be left out that share a part with edits that stay, or
            two declarations of a fact that contradict each other.

    Example:
        >>> both = compose([store.load(name) for name in names], "both", site=store.site())
        >>> both.algebra.norm_growth, both.algebra.constraint_error
    """
    members = list({member.name: member for member in members}.values())
    if not members:
        raise EditError("nothing to compose; expected at least one compiled patch")
    if name is not None:
        check_patch(name)
    _refuse_foreign(members)
    settlement = settle(members, policy)
    parts = select(members, settlement, group_cosine)
    blocks = [part for part in parts if isinstance(part, Block)]
    joint, settings = None, settlement.settings()
    if groups := [part for part in parts if isinstance(part, Group)]:
        damping = _common_damping(members, damping)
        rooms = [member.manifest.room for member in members if member.manifest.room is not None]
        spaces = [member.manifest.null_space for member in members if member.manifest.null_space is not None]
        joint = solve_jointly(merged(groups, group_cosine), damping, max(rooms, default=ROOM))
        settings |= {"damping": damping, "group_cosine": group_cosine}
        settings |= {"room": max(rooms)} if rooms else {}
        settings |= {"null_space": spaces[0]} if spaces else {}
    delta = _together(members, joint, blocks)
    kept_energy = 1.0
    if site is not None and delta.rank > site.max_rank:
        if not truncate:
            raise Incompatible(
                f"the composition needs rank {delta.rank}, the site allows {site.max_rank}: compose fewer patches, "
                "truncate (--truncate), or make a store whose site has a higher maximum rank"
            )
        reduced, dropped = delta.truncate(site.max_rank)
        delta = Delta({module: as_saved(part) for module, part in reduced.parts.items()})
        kept_energy, settings["truncated_to"] = 1.0 - dropped, site.max_rank
    report = report_of(members, parts, joint, delta, kept_energy)
    manifest = _manifest(members, name, parts, joint if not blocks else None, delta, settings, settlement)
    return CompiledPatch(manifest, delta, joint.factors if joint and not blocks else None, algebra=report)


def _together(members: Sequence[CompiledPatch], joint: Joint | None, blocks: Sequence[Block]) -> Delta:
    """The joint update and the blocks' deltas, concatenated."""
    modules = members[0].manifest.modules
    deltas = [] if joint is None else [Delta(dict(zip(modules, joint.updates, strict=True)))]
    return Delta.concatenate([*deltas, *(block.delta for block in blocks)])


def _manifest(
    members: Sequence[CompiledPatch],
    name: str | None,
    parts: Sequence[Part],
    joint: Joint | None,
    delta: Delta,
    settings: JSONObject,
    settlement: Settlement,
) -> Manifest:
    """The composition's manifest. `joint` is None if any member has no factors."""
    first = members[0].manifest
    owners: Sequence[Part] = parts if joint is None else joint.groups
    edits = tuple(edit for part in owners for edit in part.edits)
    groups, start = [], 0
    for part in owners:
        groups.append(KeyGroup(edits=tuple(range(start, start + len(part.edits)))))
        start += len(part.edits)
    return Manifest(
        kind="composition",
        patch=name or "-".join(sorted({member.manifest.patch for member in members}))[:_LONGEST_NAME],
        method="+".join(sorted({member.manifest.method for member in members})),
        base=first.base,
        site=first.site,
        modules=tuple(delta.parts),
        edits=edits,
        gate=_gate(members, settlement),
        members=tuple(sorted(member.name for member in members)),
        settings=settings,
        groups=tuple(groups) if joint else (),
        columns=joint.columns if joint else (),
        rank=delta.rank,
        adapter=delta.digest,
        factors=digest_tensors(joint.factors.tensors()) if joint else None,
    )


def _gate(members: Sequence[CompiledPatch], settlement: Settlement) -> Gate:
    """The strictest gate: for each share the members' maximum, for the perplexity drift their minimum.

    Only members with edits left count. A mean would let all edits of a demanding member fail next to less demanding
    members.
    """
    asked = [
        member.manifest.gate
        for number, member in enumerate(members)
        if any((number, edit) not in settlement.leaving for edit in range(len(member.manifest.edits)))
    ]
    shares = [gate.shares() for gate in asked]
    drifts = [gate.perplexity_drift for gate in asked if gate.perplexity_drift is not None]
    return Gate(
        **{metric: max(each[metric] for each in shares) for metric in shares[0]},
        perplexity_drift=min(drifts, default=None),
    )


def _common_damping(members: Sequence[CompiledPatch], damping: float | None) -> float:
    solved = [member for member in members if member.factors is not None]
    found = sorted({member.manifest.damping for member in solved})
    if damping is None and len(found) > 1:
        raise EditError(f"the patches were compiled with different damping ({found}); say which one to compose with")
    return found[0] if damping is None else damping


def _refuse_foreign(members: Sequence[CompiledPatch]) -> None:
    """Raise Incompatible, listing every member with another base or site than the first, or with scope subject."""
    first, problems = members[0], []
    for member in members:
        for what in ("base", "site"):
            mine, other = getattr(member.manifest, what), getattr(first.manifest, what)
            if mine != other:
                problems.append(
                    f"{short(member.name)} is for {what} {mine}, {short(first.name)} for {other}: patches compose only "
                    "at one site of one base; compile it into this store"
                )
                break
        if member.manifest.scope == "subject":
            problems.append(
                f"{short(member.name)} has scope subject: its edits are composed for every request; to compose it with "
                "other patches compile it with scope all"
            )
    spaces = {member.manifest.null_space for member in members if member.factors is not None}
    if len(spaces) > 1:
        problems.append(
            "AlphaEdit's null space differs between these patches, or only some of them have one, so their keys cannot "
            "be solved together; compile all of them with one method and one threshold"
        )
    if problems:
        raise Incompatible("\n".join(problems))
