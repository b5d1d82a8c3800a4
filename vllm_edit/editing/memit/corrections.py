"""Corrections: every row is checked under the update as saved, and rows that fail are trained on at the last layer.

A residual is trained alone, before the other edits and layers are known. In the check, leaks of the other edits, and
what the damping leaves missing, can make a row fail. Its key group is then trained on: the last layer's residual gets a
further part ε, trained through W x + ΔW x + ε (A x), where ΔW is the whole update of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vllm_edit.deltas.apply import applied
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.editing.memit.layers import Layer
from vllm_edit.editing.memit.memit_settings import MemitSettings
from vllm_edit.editing.memit.spread import LayerSolution, updates_of
from vllm_edit.editing.rome.endings import ended, is_ending
from vllm_edit.editing.rome.factors import Prepared, bare_rows
from vllm_edit.editing.rome.passes import Passes
from vllm_edit.editing.rome.residuals import train_residuals
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import Row, following, leads
from vllm_edit.progress import Progress


@dataclass(frozen=True)
class Corrected:
    """Solutions whose rows were checked.

    Attributes:
        solutions: module → its part of the update.
        rows: the checked rows.
        leads: [rows], infinite for endings that are not needed.
        steps: [groups], training steps of the corrections.
    """

    solutions: Mapping[str, LayerSolution]
    rows: tuple[Row, ...]
    leads: torch.Tensor
    steps: torch.Tensor


def correct(
    base: Base,
    last: Layer,
    prepared: Prepared,
    solutions: Mapping[str, LayerSolution],
    settings: MemitSettings,
    progress: Progress | None = None,
) -> Corrected:
    """Check the rows of `settings.checked_rows`, and train on those that fail, for at most `settings.rounds` rounds.

    A correction of one edit can make another fail, so the result is the round in which the fewest rows failed.

    Args:
        prepared: the edits, prepared at the last layer.
        solutions: module → its part of the update.
    """
    bare = set(bare_rows(prepared.rows))
    checked = [
        index
        for index, row in enumerate(prepared.rows)
        if row.answer and (settings.checked_rows == "all" or row in bare or is_ending(row))
    ]
    rows = tuple(prepared.rows[index] for index in checked)
    wanted: dict[int, float] = {}
    found, steps = dict(solutions), torch.zeros(len(prepared.columns.groups), dtype=torch.long)
    best, fewest = Corrected(found, rows, torch.empty(0), steps), len(checked) + 1
    for left in reversed(range(settings.rounds)):
        served = _served(base, rows, found, settings)
        failing = {
            index: lead
            for index, lead in zip(checked, served.tolist(), strict=True)
            if not lead >= settings.served_margin
        }
        if len(failing) < fewest:
            best, fewest = Corrected(dict(found), rows, served, steps), len(failing)
        if progress:
            progress("checking", len(checked) - len(failing), len(checked))
        if not failing or not left:
            break
        wanted |= {
            index: wanted[index] + 2 * (settings.served_margin - lead) if index in wanted else settings.context_margin
            for index, lead in failing.items()
        }
        found[last.module], made = _trained(base, last, prepared, found, wanted, settings)
        steps = steps + made
    return best


def _served(
    base: Base, rows: Sequence[Row], solutions: Mapping[str, LayerSolution], settings: MemitSettings
) -> torch.Tensor:
    """The leads [rows] under the update as saved."""

    def after(asked: Sequence[Row], places: Sequence[int]) -> list[int]:
        return following(base.model, asked, settings.batch_tokens)

    with frozen(base.model), applied(base.model, updates_of(solutions)):
        served = leads(base.model, rows, settings.batch_tokens)
        served[ended(base, rows, served, after)] = torch.inf
    return served


def _trained(
    base: Base,
    last: Layer,
    prepared: Prepared,
    solutions: Mapping[str, LayerSolution],
    rows: Mapping[int, float],
    settings: MemitSettings,
) -> tuple[LayerSolution, torch.Tensor]:
    """The last layer's solution after training on some rows (row → required margin), and the groups' steps."""
    own = solutions[last.module]
    module = find_module(base.model, last.module)
    below, device = base.layout.layers[: last.site.layer], linear_weight(module).device
    nothing = torch.zeros_like(own.residuals, dtype=torch.float32)
    with applied(base.model, updates_of(solutions)):
        passes = Passes(
            base.model,
            module,
            prepared.rows,
            own.A.float().to(device),
            below,
            settings.batch_tokens,
            whole=True,
            together=[range(len(nothing))],
        )
        trained = train_residuals(passes, rows, last.site.residual_scale, settings, nothing)
    return own.plus(trained.residuals), torch.tensor(trained.steps)
