"""r-ROME (arXiv 2202.05262, 2403.07175) for many edits at one site: factors, joint solve, re-check."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch

from vllm_edit.artefacts.manifest import KeyGroup
from vllm_edit.artefacts.reports import CompileReport
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.solver import interference
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit
from vllm_edit.editing.method import MethodResult, all_or_refused, refuse_missed
from vllm_edit.editing.rome.factors import Prepared, damping_of, margin_of, prepare
from vllm_edit.editing.rome.keys import Columns
from vllm_edit.editing.rome.rounds import Solved, solve_parts
from vllm_edit.editing.rome.served import weight_norm
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress
from vllm_edit.text.spelling import written


def compile_edits(
    base: Base,
    site: Site,
    moment: SecondMoment,
    edits: Sequence[Edit],
    settings: RomeSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """Compute the factors, solve them jointly, check every row with the delta as saved, and apply the health limits.

    Raises:
        UnsafeEdit: an edit missed its target or exceeds a health limit; the message names the edit.
        EditError: the patch needs a higher rank than the site allows.
    """
    prepared = prepare(base, site, moment, edits, settings)
    check_rank(prepared.columns.groups, site)
    (solved,) = solve_parts(base, site, prepared, edits, [range(len(edits))], settings, progress=progress)
    return _result(base, site, solved, settings)


def compile_each(
    base: Base,
    site: Site,
    moment: SecondMoment,
    patches: Sequence[Patch],
    settings: RomeSettings,
    progress: Progress | None = None,
) -> list[MethodResult]:
    """Compile several patches in one batch, so that the weights are read once. Each patch is solved and checked alone.

    `compile_edits` also trains each key group alone, so the results equal those of sequential compilation up to
    rounding, which depends on a batch's shape.

    Raises:
        EditError: two patches edit one subject, so that their edits could share a key group; or a patch needs a higher
            rank than the site allows. Both are raised before training.
        UnsafeEdit: edits missed their targets or exceed a health limit; the message names all of them.
    """
    edits, parts = edits_apart(patches)
    prepared = prepare(base, site, moment, edits, settings)
    check_ranks(prepared, parts, site)
    solved = solve_parts(base, site, prepared, edits, parts, settings, progress=progress)
    return all_or_refused([partial(_result, base, site, part, settings) for part in solved])


def edits_apart(patches: Sequence[Patch]) -> tuple[list[Edit], list[range]]:
    """The edits of all patches, and for each patch the numbers of its edits.

    Raises:
        EditError: two patches edit one subject, so that their edits could share a key group.
    """
    owners: dict[str, Patch] = {}
    for patch in patches:
        for edit in patch.edits:
            owner = owners.setdefault(written(edit.subject).folded, patch)
            if owner is not patch:
                raise EditError(
                    f"{owner.name} and {patch.name} both edit {edit.subject!r}; compile them one after the other"
                )
    ends = accumulate(len(patch.edits) for patch in patches)
    parts = [range(end - len(patch.edits), end) for end, patch in zip(ends, patches, strict=True)]
    return [edit for patch in patches for edit in patch.edits], parts


def check_ranks(prepared: Prepared, parts: Sequence[range], site: Site) -> None:
    """`check_rank` of each part. A key group has one subject, so it belongs to one part."""
    for own in parts:
        check_rank([group for group in prepared.columns.groups if group.edits[0] in own], site)


def check_rank(groups: Sequence[KeyGroup], site: Site) -> None:
    """Check that the site's maximum rank is sufficient for a patch with these key groups.

    Raises:
        EditError: it is not; the message gives the required rank.
    """
    if (rank := len(groups)) > site.max_rank:
        raise EditError(
            f"the patch has {rank} key groups and needs rank {rank}; the site allows {site.max_rank}: split the patch, "
            "or make a store whose site has a higher maximum rank (vllm-edit store init --max-rank)"
        )


def _result(base: Base, site: Site, solved: Solved, settings: RomeSettings) -> MethodResult:
    """The update and its report. Raises UnsafeEdit if an edit exceeds a health limit."""
    report = CompileReport(
        edits=tuple(health.judged(settings) for health in solved.health),
        norm=solved.update.norm() / weight_norm(base, site),
        interference=highest_interference(solved.computed.prepared.columns),
    )
    refuse_missed(report, settings.on_missed)
    columns = solved.computed.prepared.columns
    return MethodResult(
        delta=Delta({site.module: solved.update}),
        factors=solved.computed.factors,
        groups=columns.groups,
        columns=columns.columns,
        settings=settings.identity(damping_of(site, settings), margin_of(site, settings)),
        report=report,
    )


def highest_interference(columns: Columns) -> float:
    """The highest whitened cosine (absolute) between columns of different groups; 0 for one group."""
    cosines = interference(columns.keys, columns.whitened).abs()
    groups = torch.tensor(columns.group_of)
    other = groups[:, None] != groups[None, :]
    return float(cosines[other].max()) if other.any() else 0.0
