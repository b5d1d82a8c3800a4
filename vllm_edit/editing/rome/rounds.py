"""Rounds of training and checking: rows that fail a check are added to the training.

Training starts with each edit's bare prompts (or with more rows, see `RomeSettings.first_rows`). Then every row, in
every context and form, is checked in full forward passes with the delta as saved. A row that fails is added to the
training. A trained row can still fail, because the update also acts on tokens before the site's token, and because
other groups of the joint solve act on the row. The first round of training models neither effect. After such a failure,
the row's key group is trained on whole rows under the whole update. If the row fails again (training multiplies in
bfloat16, the check does not), its margin is raised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from vllm_edit.artefacts.site import Site
from vllm_edit.composition.solver import as_saved, gram
from vllm_edit.deltas.delta import LowRank
from vllm_edit.edit import Edit
from vllm_edit.editing.closed_form_settings import ClosedFormSettings
from vllm_edit.editing.rome.endings import ended, is_ending
from vllm_edit.editing.rome.factors import (
    Part,
    Prepared,
    RomeFactors,
    alone,
    bare_rows,
    damping_of,
    margin_of,
    offsets,
    passes_over,
    together,
)
from vllm_edit.editing.rome.health import EditHealth
from vllm_edit.editing.rome.residuals import Trained, train_residuals
from vllm_edit.editing.rome.served import served_following, served_leads, weight_norm
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.models.base import Base
from vllm_edit.models.fast_products import fast_products
from vllm_edit.models.rows import Row
from vllm_edit.progress import Progress


@dataclass(frozen=True)
class Solved:
    """Edits solved jointly, with their update as saved.

    leads: [rows], the lead of each taught row under the update, in nats; infinite for an ending row whose answer ends.
    """

    computed: RomeFactors
    update: LowRank
    leads: torch.Tensor
    health: tuple[EditHealth, ...]


def solve_parts(
    base: Base,
    site: Site,
    prepared: Prepared,
    edits: Sequence[Edit],
    parts: Sequence[Sequence[int]],
    settings: RomeSettings,
    *,
    start: torch.Tensor | None = None,
    progress: Progress | None = None,
    exact: bool = True,
) -> list[Solved]:
    """Train the residuals of all parts in one batch; solve and check each part alone, as served.

    Args:
        prepared: the prepared `edits`, in the same order.
        parts: for each part, the numbers of the edits that are solved jointly. No key group has edits of two parts.
        start: [groups, d_out], initial residuals.
        exact: check in the model's own precision. False allows bfloat16, if the settings and the processor allow it;
            use it only for trials, whose updates are discarded.
    """
    damping, fixed = damping_of(site, settings), offsets(base, site, prepared, settings)
    selected = [Part.of(prepared, own, damping) for own in parts]
    passes = passes_over(base, site, prepared, alone(prepared, damping), settings)
    served = passes_over(base, site, prepared, together(prepared, selected), settings, selected)
    leaking = set(range(len(fixed))) if settings.whole_rows else set[int]()
    wanted = first_rows(prepared, margin_of(site, settings), settings)
    trained = Trained.untrained(fixed if start is None else start)
    solved: dict[int, Solved] = {}
    pending = list(range(len(parts)))
    for left in reversed(range(settings.rounds)):
        own = {edit for part in pending for edit in parts[part]}
        rows = {index: margin for index, margin in wanted.items() if prepared.rows[index].edit in own}
        for over, full in ((passes, False), (served, True)):
            some = {row: margin for row, margin in rows.items() if (prepared.rows[row].group in leaking) == full}
            if some:
                again = train_residuals(over, some, site.residual_scale, settings, fixed, trained.residuals, progress)
                trained = trained.then(again, {prepared.rows[row].group for row in some})
        chosen = {part: selected[part].with_residuals(trained) for part in pending}
        texts = {part: [edits[number] for number in parts[part]] for part in pending}
        more: dict[int, dict[int, float]] = {}
        for part, checked in _checked(base, site, texts, chosen, settings, exact).items():
            solved[part] = checked
            more[part] = _missed(prepared, parts[part], checked, wanted, leaking, settings)
        leaking |= {prepared.rows[row].group for missed in more.values() for row in missed if row in rows}
        wanted |= {row: margin for missed in more.values() for row, margin in missed.items()}
        pending = [part for part in pending if more[part]]
        if progress:
            progress("checking", len(parts) - len(pending), len(parts))
        if not pending or not left:
            break
    return [solved[part] for part in range(len(parts))]


def first_rows(prepared: Prepared, margin: float, settings: ClosedFormSettings) -> dict[int, float]:
    """Row → required margin for the first round: some rows with an answer, and all rows without one."""
    bare = set(bare_rows(prepared.rows))

    def comes_first(row: Row) -> bool:
        more = {"bare": False, "text": row.form == "plain", "all": not is_ending(row)}
        return row in bare or not row.answer or more[settings.first_rows]

    return {
        index: margin if row in bare and row.form == "plain" else settings.context_margin
        for index, row in enumerate(prepared.rows)
        if comes_first(row)
    }


def _missed(
    prepared: Prepared,
    own: Sequence[int],
    solved: Solved,
    wanted: Mapping[int, float],
    leaking: Collection[int],
    settings: RomeSettings,
) -> dict[int, float]:
    """Row → required margin, for those rows of the part that fail and can improve with more training.

    own: numbers of the part's edits. leaking: groups already trained under the whole update. The margins of other
    groups are not raised, because the next round trains them under the whole update for the first time.
    """
    taught = [index for index, row in enumerate(prepared.rows) if row.edit in own and row.answer]
    places = [row.group for row in solved.computed.prepared.taught]
    reached = solved.computed.trained.reached
    more: dict[int, float] = {}
    for index, group, lead in zip(taught, places, solved.leads.tolist(), strict=True):
        if lead >= settings.served_margin:
            continue
        if index not in wanted:
            more[index] = settings.context_margin
        elif reached[group]:  # a group that used all its steps would not improve in another round
            further = 2 * (settings.served_margin - lead) if prepared.rows[index].group in leaking else 0.0
            more[index] = wanted[index] + further
    return more


def _checked(
    base: Base,
    site: Site,
    edits: Mapping[int, Sequence[Edit]],
    chosen: Mapping[int, RomeFactors],
    settings: RomeSettings,
    exact: bool,
) -> dict[int, Solved]:
    """Each chosen part's joint solve, checked in full forward passes that all parts share."""
    updates = [as_saved(computed.update) for computed in chosen.values()]
    rows = [row for computed in chosen.values() for row in computed.prepared.taught]
    owner = [number for number, computed in enumerate(chosen.values()) for _ in computed.prepared.taught]
    with fast_products([base.model] if settings.fast_products and not exact else []):
        served = served_leads(base, site, rows, updates, owner, settings.batch_tokens)

        def after(asked: Sequence[Row], places: Sequence[int]) -> list[int]:
            own = [owner[place] for place in places]
            return served_following(base, site, asked, updates, own, settings.batch_tokens)

        served[ended(base, rows, served, after)] = torch.inf
    whole = weight_norm(base, site)
    found: dict[int, Solved] = {}
    for number, ((part, computed), update) in enumerate(zip(chosen.items(), updates, strict=True)):
        leads = served[[place for place, other in enumerate(owner) if other == number]]
        shares = update.B.norm(dim=0) * update.A.norm(dim=1) / whole  # [groups]: ‖b_g a_gᵀ‖ / ‖W‖
        health = health_of(edits[part], computed.prepared, computed.trained, shares, leads, site.d_in)
        found[part] = Solved(computed, update, leads, health)
    return found


def health_of(
    edits: Sequence[Edit],
    prepared: Prepared,
    trained: Trained,
    norms: torch.Tensor,
    leads: torch.Tensor,
    d_in: int,
) -> tuple[EditHealth, ...]:
    """Every edit's health.

    Args:
        norms: [groups], ‖ΔW of the group‖ / ‖W‖.
        leads: [rows], the leads of the taught rows under the update as served.
    """
    rows, columns = prepared.taught, prepared.columns
    denominators = gram(columns.keys, columns.whitened).diagonal() / d_in
    result = []
    for index, edit in enumerate(edits):
        own = [place for place, row in enumerate(rows) if row.edit == index and not is_ending(row)]
        group = rows[own[0]].group
        result.append(
            EditHealth(
                edit=index,
                subject=edit.subject,
                prompt=edit.prompt,
                target=edit.target_new,
                group=group,
                denominator=float(denominators[columns.own(group)[0]]),
                norm=float(norms[group]),
                steps=trained.steps[group],
                trained=trained.reached[group],
                trained_margin=trained.margins[group],
                served_margin=float(leads[own].min()),
                rows=len(own),
                passed=int((leads[own] > 0).sum()),
            )
        )
    return tuple(result)
