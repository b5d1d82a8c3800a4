"""FT-M: the site's module fine-tuned on the edit's prompt alone, with or without a norm limit. The naive baseline.

    ΔW = argmin mean NLL(target | prompt)  by a few steps of Adam,  optionally |ΔW_ij| <= norm_limit · RMS(W)

Fine-tuning of one MLP matrix is FT of arXiv 2202.05262 (§3.2, baselines/ft of its code), the limit makes it FT+L; the
loss that is right for targets of several tokens is FT-M of EasyEdit. Departures:

- W is never written to: ΔW is trained through W x + ΔW x in a hook.
- Steps and limit are relative to RMS(W). The published step is 5·10⁻⁴ for matrices initialised at 0.02: 0.025 · RMS.
- ΔW has full rank. It is served as its best approximation of the site's rank; the report says what energy that keeps,
  and every edit is checked again with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vllm_edit.artefacts.site import Site
from vllm_edit.composition.closed_form import as_saved
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.forward import dense_forward
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.editing.baselines.one_example import ExampleSettings, Trained, example_rows, recheck, train
from vllm_edit.editing.checked_settings import PositiveCount, PositiveReal, RealFromZero, checked
from vllm_edit.editing.method import MethodResult
from vllm_edit.editing.settings import Progress
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import Row, leads
from vllm_edit.patch import Edit


@checked
class FinetuneSettings(ExampleSettings):
    """Fine-tuning at the site."""

    method: ClassVar[str] = "ft"
    advice: ClassVar[str] = "raise `steps`, `learning_rate`, `norm_limit` or `rank`"

    learning_rate: PositiveReal = 0.025
    """Adam's step, in units of RMS(W)."""
    stop_loss: RealFromZero = 0.01
    """Training stops when the mean NLL of the targets' tokens is below it. 0: all steps are made."""
    norm_limit: PositiveReal | None = None
    """Most |ΔW_ij|, in units of RMS(W): FT+L's limit (L∞). None: no limit."""
    rank: PositiveCount | None = None
    """Rank that ΔW is truncated to; None takes the site's maximum."""


@dataclass(frozen=True)
class Update:
    """What was trained. dense: module → ΔW [d_out, d_in], with the model. margins: [edits], leads in nats under it."""

    dense: dict[str, torch.Tensor]
    margins: torch.Tensor
    trained: Trained


def compile_edits(
    base: Base,
    site: Site,
    moment: SecondMoment,
    edits: Sequence[Edit],
    settings: FinetuneSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """One ΔW trained on all edits together, truncated to the site's rank, re-checked.

    Raises:
        UnsafeEdit: an edit missed its target, by name.
        EditError: the rank asked for is more than the site's.
    """
    rank = settings.rank_at(site)
    rows = example_rows(edits, base.tokenizer)
    update = train_update(base, site, rows, settings, progress)
    nearest = {name: LowRank.nearest(dense, rank) for name, dense in update.dense.items()}
    delta = Delta({name: as_saved(part) for name, (part, _) in nearest.items()})
    total = sum(float(dense.norm()) ** 2 for dense in update.dense.values())
    dropped = sum(energy for _, energy in nearest.values())
    return MethodResult(
        delta=delta,
        settings=settings.identity(rank),
        report={
            **recheck(base, site, edits, rows, delta, update.margins, settings),
            "steps": update.trained.steps,
            "loss": update.trained.loss,
            "energy_kept": 1 - dropped / total if total else 1.0,
        },
    )


def train_update(
    base: Base, site: Site, rows: Sequence[Row], settings: FinetuneSettings, progress: Progress | None = None
) -> Update:
    """ΔW of each of the site's modules, full rank. Deterministic; the model is left as it was.

    Modules share one optimiser. Each ΔW is trained in units of its own RMS(W), so that Adam's step is the same
    fraction of every matrix.
    """
    modules = {name: find_module(base.model, name) for name in site.modules}
    weights = {name: linear_weight(module).detach() for name, module in modules.items()}  # [d_out, d_in]
    units = {name: float(weight.float().square().mean().sqrt()) for name, weight in weights.items()}
    scaled = {
        name: nn.Parameter(torch.zeros(weight.shape, device=weight.device, dtype=torch.float32))
        for name, weight in weights.items()
    }

    def clamp() -> None:
        if settings.norm_limit is not None:
            with torch.no_grad():
                for parameter in scaled.values():
                    parameter.clamp_(-settings.norm_limit, settings.norm_limit)

    with ExitStack() as stack:
        stack.enter_context(frozen(base.model))
        for name, module in modules.items():
            stack.enter_context(dense_forward(module, scaled[name], units[name]))
        trained = train(base.model, rows, list(scaled.values()), settings.learning_rate, settings, clamp, progress)
        margins = leads(base.model, rows, settings.batch_tokens)
    dense = {name: units[name] * parameter.detach() for name, parameter in scaled.items()}
    return Update(dense, margins, trained)
