"""FT-M: fine-tuning of the site's module on the edit's prompt alone, with or without a norm limit. A naive baseline.

    ΔW = argmin mean NLL(target | prompt)  by a few steps of Adam,  optionally |ΔW_ij| <= norm_limit · RMS(W)

Fine-tuning one MLP matrix is FT of arXiv 2202.05262 (§3.2, baselines/ft of its code); with the limit it is FT+L. The
loss, which is correct for targets of several tokens, is that of FT-M in EasyEdit. Departures:

- W is never written: a hook computes W x + ΔW x, and only ΔW is trained.
- Learning rate and limit are relative to RMS(W). The published rate is 5·10⁻⁴ for matrices initialised with standard
  deviation 0.02, hence 0.025 · RMS.
- ΔW has full rank. Its best approximation with the site's rank is served; the report contains the share of energy that
  remains, and every edit is checked again with the approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vllm_edit.artefacts.site import Site
from vllm_edit.composition.solver import as_saved
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.forward import dense_forward
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import ExampleSettings, Trained, example_rows, recheck, train
from vllm_edit.editing.method import MethodResult
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import Row, leads
from vllm_edit.progress import Progress
from vllm_edit.settings import PositiveCount, PositiveReal, RealFromZero


class FinetuneSettings(ExampleSettings):
    """Settings of fine-tuning at the site."""

    title: ClassVar[str] = "ft"
    advice: ClassVar[str] = "raise `steps`, `learning_rate`, `norm_limit` or `rank`"

    learning_rate: PositiveReal = 0.025
    """Adam's learning rate, in units of RMS(W)."""
    stop_loss: RealFromZero = 0.01
    """Training stops when the mean NLL of the targets' tokens is below this value. 0: all steps are made."""
    norm_limit: PositiveReal | None = None
    """Maximum |ΔW_ij|, in units of RMS(W): FT+L's limit (L∞). None: no limit."""
    rank: PositiveCount | None = None
    """Rank to which ΔW is truncated; None takes the site's maximum."""


@dataclass(frozen=True)
class Update:
    """The trained update. dense: module → ΔW [d_out, d_in], on the model's device. margins: [edits], leads in nats
    under ΔW."""

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
    """Train one ΔW on all edits together, truncate it to the site's rank, and check the edits again.

    Raises:
        UnsafeEdit: an edit missed its target; the message names the edit.
        EditError: the requested rank exceeds the site's maximum.
    """
    rank = settings.rank_at(site)
    rows = example_rows(edits, base.tokenizer)
    update = train_update(base, site, rows, settings, progress)
    nearest = {name: LowRank.nearest(dense, rank) for name, dense in update.dense.items()}
    delta = Delta({name: as_saved(part) for name, (part, _) in nearest.items()})
    total = sum(float(dense.norm()) ** 2 for dense in update.dense.values())
    dropped = sum(energy for _, energy in nearest.values())
    report = recheck(base, site, edits, rows, delta, update.margins, settings)
    measured = {
        "steps": update.trained.steps,
        "loss": update.trained.loss,
        "energy_kept": 1 - dropped / total if total else 1.0,
    }
    return MethodResult(delta, settings=settings.identity(rank), report=report.model_copy(update=measured))


def train_update(
    base: Base, site: Site, rows: Sequence[Row], settings: FinetuneSettings, progress: Progress | None = None
) -> Update:
    """Train ΔW, with full rank, of each of the site's modules. Deterministic; does not change the model.

    The modules share one optimiser. Each ΔW is trained in units of its module's RMS(W), so that Adam's step is the same
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
