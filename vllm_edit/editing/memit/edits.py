"""MEMIT (arXiv 2210.07229) and AlphaEdit (2410.02355) for many edits over the layers of a site.

EMMET (2403.14236) is MEMIT at a site of one layer: its weight w and its damping μ make one λ = μ · w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from vllm_edit.artefacts.compiled import Factors
from vllm_edit.artefacts.reports import CompileReport
from vllm_edit.artefacts.site import Site
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.edit import Edit
from vllm_edit.editing.key_metric import Metric
from vllm_edit.editing.memit.corrections import Corrected, correct
from vllm_edit.editing.memit.layers import Layer, layers_of
from vllm_edit.editing.memit.memit_settings import AlphaEditSettings, MemitSettings
from vllm_edit.editing.memit.null_space import NullSpace
from vllm_edit.editing.memit.spread import spread, updates_of
from vllm_edit.editing.method import MethodResult, all_or_refused, refuse_missed
from vllm_edit.editing.rome.edits import check_rank, check_ranks, edits_apart, highest_interference
from vllm_edit.editing.rome.factors import Prepared, alone, damping_of, margin_of, passes_over, prepare
from vllm_edit.editing.rome.residuals import Trained, train_residuals
from vllm_edit.editing.rome.rounds import first_rows, health_of
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress


def compile_edits(
    base: Base,
    site: Site,
    moments: SecondMoment | SecondMoments,
    edits: Sequence[Edit],
    settings: MemitSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """MEMIT: train the residuals at the last layer, spread them over the layers, check and correct all rows.

    Raises:
        UnsafeEdit: an edit missed its target or exceeds a health limit; the message names the edit.
        EditError: the patch needs a higher rank than the site allows, or the site does not suit the method.
    """
    return compile_at(base, layers_of(base, site, moments, _inverse), edits, settings, progress)


def compile_in_null_space(
    base: Base,
    site: Site,
    moments: SecondMoment | SecondMoments,
    edits: Sequence[Edit],
    settings: AlphaEditSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """AlphaEdit: as `compile_edits`, with the projector on the null space of C in place of C⁻¹ (`null_space`)."""
    return compile_at(base, _layers_in_null_space(base, site, moments, settings), edits, settings, progress)


def compile_each(
    base: Base,
    site: Site,
    moments: SecondMoment | SecondMoments,
    patches: Sequence[Patch],
    settings: MemitSettings,
    progress: Progress | None = None,
) -> list[MethodResult]:
    """Compile several patches independently by MEMIT. Their residuals are trained in one batch.

    Raises:
        EditError: two patches edit one subject, or as `compile_edits`.
        UnsafeEdit: edits missed their targets or exceed a health limit; the message names all of them.
    """
    return compile_each_at(base, layers_of(base, site, moments, _inverse), patches, settings, progress)


def compile_each_in_null_space(
    base: Base,
    site: Site,
    moments: SecondMoment | SecondMoments,
    patches: Sequence[Patch],
    settings: AlphaEditSettings,
    progress: Progress | None = None,
) -> list[MethodResult]:
    """`compile_each` by AlphaEdit."""
    return compile_each_at(base, _layers_in_null_space(base, site, moments, settings), patches, settings, progress)


def _layers_in_null_space(
    base: Base, site: Site, moments: SecondMoment | SecondMoments, settings: AlphaEditSettings
) -> tuple[Layer, ...]:
    return layers_of(base, site, moments, partial(NullSpace.of, threshold=settings.null_space))


def _inverse(moment: SecondMoment) -> Metric:
    """C⁻¹, which a second moment applies itself."""
    return moment


def compile_at(
    base: Base,
    layers: Sequence[Layer],
    edits: Sequence[Edit],
    settings: MemitSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """All steps at some layers: residuals at the last, spread over all, checked and corrected.

    The model is taken as it is now, with the updates that are applied to it. So the sequential protocol of AlphaEdit
    (arXiv 2410.02355) is a call for each batch, under the updates of the batches before, whose keys are the layers'
    `earlier` keys.

    Args:
        layers: the edited layers, from the first to the last.

    Raises:
        UnsafeEdit, EditError: as `compile_edits`.
    """
    last = layers[-1]
    prepared = prepare(base, last.site, last.metric, edits, settings)
    check_rank(prepared.columns.groups, last.site)
    trained, wanted = _trained(base, last, prepared, settings, progress)
    return _solved(base, layers, prepared, edits, trained, wanted, settings, progress)


def compile_each_at(
    base: Base,
    layers: Sequence[Layer],
    patches: Sequence[Patch],
    settings: MemitSettings,
    progress: Progress | None = None,
) -> list[MethodResult]:
    """`compile_each` at these layers: each patch is spread, checked and corrected alone."""
    last = layers[-1]
    edits, parts = edits_apart(patches)
    prepared = prepare(base, last.site, last.metric, edits, settings)
    check_ranks(prepared, parts, last.site)
    trained, wanted = _trained(base, last, prepared, settings, progress)

    def result(patch: Patch, part: Sequence[int]) -> MethodResult:
        own, groups = prepared.only(part), prepared.groups_of(part)
        return _solved(base, layers, own, patch.edits, trained.only(groups), wanted[groups], settings)

    makers = [partial(result, patch, part) for patch, part in zip(patches, parts, strict=True)]
    return all_or_refused(makers, "spreading over the layers", progress)


def _solved(
    base: Base,
    layers: Sequence[Layer],
    prepared: Prepared,
    edits: Sequence[Edit],
    trained: Trained,
    wanted: torch.Tensor,
    settings: MemitSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """The result of edits whose residuals are trained. wanted: [groups, d_out], the shift that each needs.

    Raises:
        UnsafeEdit: an edit missed its target or exceeds a health limit; the message names the edit.
    """
    last = layers[-1]
    damping = damping_of(last.site, settings)
    solutions = spread(base, layers, prepared, edits, wanted, damping, settings, progress)
    corrected = correct(base, last, prepared, solutions, settings, progress)
    report = _report(base, layers, prepared, edits, trained, corrected, settings)
    refuse_missed(report, settings.on_missed)
    found = [corrected.solutions[layer.module] for layer in layers]
    return MethodResult(
        delta=Delta(updates_of(corrected.solutions)),
        factors=Factors(
            torch.cat([solution.columns.keys for solution in found]),
            torch.cat([solution.columns.whitened for solution in found]),
            torch.cat([solution.residuals.float() for solution in found]),
        ),
        groups=prepared.columns.groups,
        columns=tuple(
            column.model_copy(update={"module": number})
            for number, solution in enumerate(found)
            for column in solution.columns.columns
        ),
        settings=settings.identity(damping, margin_of(last.site, settings)),
        report=report,
    )


def _trained(
    base: Base, last: Layer, prepared: Prepared, settings: MemitSettings, progress: Progress | None
) -> tuple[Trained, torch.Tensor]:
    """The residuals of all groups, trained as in r-ROME, through the update of each group alone at the last layer.

    Also the shift δ [groups, d_out] that each makes at its plain key, of which damping takes a part.
    """
    A, columns = alone(prepared, damping_of(last.site, settings)), prepared.columns
    passes = passes_over(base, last.site, prepared, A, settings)
    rows = first_rows(prepared, margin_of(last.site, settings), settings)
    nothing = torch.zeros(len(prepared.columns.groups), last.site.d_out)
    trained = train_residuals(passes, rows, last.site.residual_scale, settings, nothing, progress=progress)
    keys = torch.stack([columns.keys[columns.own(group)[0]] for group in range(len(columns.groups))])
    reached = (A * keys).sum(1).float()  # [groups]: 1 without damping
    return trained, reached[:, None] * trained.residuals


def _report(
    base: Base,
    layers: Sequence[Layer],
    prepared: Prepared,
    edits: Sequence[Edit],
    trained: Trained,
    corrected: Corrected,
    settings: MemitSettings,
) -> CompileReport:
    """The report with every edit's health. An edit's norm is that of the layer where it is greatest."""
    shares, norms, wholes = [], [], []
    for layer in layers:
        update = corrected.solutions[layer.module].update
        whole = float(linear_weight(find_module(base.model, layer.module)).detach().float().norm())
        shares.append(update.B.norm(dim=0) * update.A.norm(dim=1) / whole)  # [groups]
        norms.append(update.norm())
        wholes.append(whole)
    steps = tuple(first + more for first, more in zip(trained.steps, corrected.steps.tolist(), strict=True))
    health = health_of(
        edits,
        replace(prepared, rows=corrected.rows),
        trained.with_steps(steps),
        torch.stack(shares).amax(0),
        corrected.leads,
        layers[-1].site.d_in,
    )
    return CompileReport(
        edits=tuple(line.judged(settings) for line in health),
        norm=math.hypot(*norms) / math.hypot(*wholes),
        interference=highest_interference(prepared.columns),
    )
