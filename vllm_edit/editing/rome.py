"""r-ROME (arXiv 2202.05262, 2403.07175) for many edits at one site: factors, joint solve, re-check."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from vllm_edit.composition.closed_form import as_saved
from vllm_edit.composition.system import gram, interference
from vllm_edit.deltas.delta import Delta, LowRank
from vllm_edit.editing.health import EditHealth, refuse_unsafe
from vllm_edit.editing.method import MethodResult
from vllm_edit.editing.rome_factors import RomeFactors, compute_factors, damping_of, prepare
from vllm_edit.editing.settings import Progress, RomeSettings
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen, low_rank_forward
from vllm_edit.models.layout import linear_weight
from vllm_edit.models.rows import Batch, Row, leads
from vllm_edit.patch import Edit
from vllm_edit.store.manifest import KeyGroup
from vllm_edit.store.site import Site


def compile_edits(
    base: Base,
    site: Site,
    moment: SecondMoment,
    edits: Sequence[Edit],
    settings: RomeSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """Factors, joint solve, re-check of every row with the delta as it will be saved, health limits.

    Raises:
        UnsafeEdit: an edit missed its target or breaks a health limit, by name.
        EditError: the patch needs a higher rank than the site has.
    """
    prepared = prepare(base, site, moment, edits, settings)
    check_rank(prepared.columns.groups, site)
    margins = [settings.margin] * len(prepared.columns.groups)
    start = None
    for left in reversed(range(settings.rounds)):
        computed = compute_factors(
            base, site, moment, edits, settings, prepared=prepared, start=start, margins=margins, progress=progress
        )
        chosen = computed.only(range(len(edits)))
        update, health = _solved(base, site, edits, chosen, settings)
        short = _shortfalls(health, len(margins), settings)
        if not left or not any(short):
            break
        margins = [margin + lacking for margin, lacking in zip(margins, short, strict=True)]
        start = computed.factors.residuals
    return _result(base, site, chosen, update, health, settings)


def check_rank(groups: Sequence[KeyGroup], site: Site) -> None:
    """Refuse a patch of these key groups where the site cannot hold it.

    Raises:
        EditError: with the rank that it needs.
    """
    if (rank := len(groups)) > site.max_rank:
        raise EditError(
            f"the patch has {rank} key groups and needs rank {rank}; the site allows {site.max_rank}: split the patch, "
            "or make a store whose site has a higher maximum rank (vllm-edit store init --max-rank)"
        )


def _shortfalls(health: Sequence[EditHealth], groups: int, settings: RomeSettings) -> list[float]:
    """How many nats each key group's worst row lacks in the joint solve, and as much again; 0 where nothing lacks.

    A group that ran out of steps before it reached its margin alone has nothing to gain from a larger one.
    """
    lacking = [0.0] * groups
    for one in health:
        if one.served_margin < settings.served_margin and one.trained_margin >= settings.margin:
            lacking[one.group] = max(lacking[one.group], 2 * (settings.served_margin - one.served_margin))
    return lacking


def judged(
    base: Base, site: Site, edits: Sequence[Edit], computed: RomeFactors, settings: RomeSettings
) -> MethodResult:
    """The edits' joint solve, re-checked on every row with the delta as it will be saved.

    Raises:
        UnsafeEdit: an edit missed its target or breaks a health limit, by name.
    """
    return _result(base, site, computed, *_solved(base, site, edits, computed, settings), settings)


def _solved(
    base: Base, site: Site, edits: Sequence[Edit], computed: RomeFactors, settings: RomeSettings
) -> tuple[LowRank, list[EditHealth]]:
    """The joint update as it will be saved, and every edit's numbers under it."""
    update = as_saved(computed.solve(damping_of(site, settings)))
    return update, measure_health(base, site, edits, computed, update, settings)


def _result(
    base: Base,
    site: Site,
    computed: RomeFactors,
    update: LowRank,
    health: Sequence[EditHealth],
    settings: RomeSettings,
) -> MethodResult:
    """The update with what is told of it, unless an edit is beyond a limit."""
    refuse_unsafe(health, settings)
    damping = damping_of(site, settings)
    columns = computed.prepared.columns
    return MethodResult(
        delta=Delta({site.module: update}),
        factors=computed.factors,
        groups=columns.groups,
        columns=columns.columns,
        settings=settings.identity(damping),
        report={
            "edits": [one.as_record(settings) for one in health],
            "missed": [one.edit for one in health if one.problems(settings)],
            "norm": update.norm() / weight_norm(base, site),
            "interference": _interference(computed),
        },
    )


def measure_health(
    base: Base,
    site: Site,
    edits: Sequence[Edit],
    computed: RomeFactors,
    update: LowRank,
    settings: RomeSettings,
) -> list[EditHealth]:
    """Every edit's numbers with `update` served to all rows, as one tenant would get it."""
    rows, columns, trained = computed.prepared.taught, computed.prepared.columns, computed.trained
    served = served_leads(base, site, rows, update, settings)
    denominators = gram(columns.keys, columns.whitened).diagonal() / site.d_in
    shares = update.B.norm(dim=0) * update.A.norm(dim=1) / weight_norm(base, site)  # [groups]: ‖b_g a_gᵀ‖ / ‖W‖
    result = []
    for index, edit in enumerate(edits):
        own = [place for place, row in enumerate(rows) if row.edit == index]
        group = rows[own[0]].group
        result.append(
            EditHealth(
                edit=index,
                subject=edit.subject,
                prompt=edit.prompt,
                target=edit.target_new,
                group=group,
                denominator=float(denominators[columns.own(group)[0]]),
                norm=float(shares[group]),
                steps=trained.steps[group],
                trained_margin=trained.margins[group],
                served_margin=float(served[own].min()),
                rows=len(own),
                passed=int((served[own] > 0).sum()),
            )
        )
    return result


def served_leads(base: Base, site: Site, rows: Sequence[Row], update: LowRank, settings: RomeSettings) -> torch.Tensor:
    """The lead of every row's answer with `update` in the forward of the site, [rows]."""
    module = find_module(base.model, site.module)
    device = linear_weight(module).device
    with frozen(base.model), low_rank_forward(module, update.A.float().to(device), update.B.float().to(device)):
        return leads(base.model, rows, settings.batch_tokens)


def leads_alone(
    base: Base, site: Site, rows: Sequence[Row], computed: RomeFactors, settings: RomeSettings
) -> torch.Tensor:
    """The lead of every row's answer under its own group's update and no other, [rows]."""
    module = find_module(base.model, site.module)
    device = linear_weight(module).device
    groups = torch.tensor([row.group for row in rows])
    A, B = computed.alone.float(), computed.factors.residuals

    def own_update(batch: Batch) -> AbstractContextManager[None]:
        chosen = groups[batch.rows.cpu()]
        return low_rank_forward(module, A[chosen][:, None, :].to(device), B[chosen][:, :, None].to(device))

    with frozen(base.model):
        return leads(base.model, rows, settings.batch_tokens, own_update)


def weight_norm(base: Base, site: Site) -> float:
    """‖W‖ of the site's module, Frobenius."""
    return float(linear_weight(find_module(base.model, site.module)).detach().float().norm())


def _interference(computed: RomeFactors) -> float:
    """The highest whitened cosine (absolute) between columns of different groups; 0 for one group."""
    columns = computed.prepared.columns
    cosines = interference(columns.keys, columns.whitened).abs()
    groups = torch.tensor(columns.group_of)
    other = groups[:, None] != groups[None, :]
    return float(cosines[other].max()) if other.any() else 0.0
