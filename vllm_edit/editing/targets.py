"""Target values: the residuals δ, trained for many key groups in one batch.

For each group A_g [d_in] is fixed before δ is known (`row_space` of the group's own columns), and B_g = δ_g
is trained through the real low-rank forward W x + δ_g (A_g x) at *every* token: what is optimised is what is served,
leakage on other tokens included. (ROME, arXiv 2202.05262, eq. 4, pastes δ at one token of the hooked output.)

    loss_g = mean over rows and answer tokens of NLL(answer)
           + kl_factor · mean over rows without an answer of KL(base ‖ edited) after their last token
           + norm_penalty · mean(θ_g²),            δ_g = offset_g + unit · θ_g

unit is the RMS of the residual stream at the site, so that Adam's step means the same in every model. A group is done,
and leaves the batch, when every answer token of every row leads its best rival by `margin` nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vllm_edit.editing.settings import Progress, RomeSettings
from vllm_edit.models.hooks import frozen, low_rank_forward
from vllm_edit.models.layout import linear_shape
from vllm_edit.models.lower_blocks import Below
from vllm_edit.models.rows import Batch, Row, answer_scores, batches, device_of, run_batch


@dataclass(frozen=True)
class Trained:
    """residuals: [groups, d_out] float32 on the CPU; per group the updates made, the least margin (nats), the loss."""

    residuals: torch.Tensor
    steps: tuple[int, ...]
    margins: tuple[float, ...]
    losses: tuple[float, ...]

    def reached(self, margin: float) -> tuple[bool, ...]:
        return tuple(found >= margin for found in self.margins)


def train_residuals(
    model: nn.Module,
    module: nn.Module,
    rows: Sequence[Row],
    A: torch.Tensor,
    unit: float,
    settings: RomeSettings,
    offsets: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
    below: Sequence[str] = (),
    margins: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train one residual per group. Deterministic; the model is left as it was.

    rows: answers to teach (rows with an answer) and distributions to keep (rows without), each of a group.
    A: [groups, d_in]. unit: the residual stream's RMS. offsets: [groups, d_out], δ's part that is not trained.
    start: [groups, d_out], residuals to start from instead of the offsets.  below: names of the model's blocks before
    the module's, which then run once and not in every step; memory: rows' tokens × hidden size.
    margins: each group's own instead of the settings'.

    A group that never reaches the margin keeps the residual of its lowest loss.
    """
    device = device_of(model)
    fixed = torch.zeros(A.shape[0], linear_shape(module)[0]) if offsets is None else offsets.float()
    first = torch.zeros_like(fixed) if start is None else (start.float() - fixed) / unit
    # One parameter a group: Adam skips those without a gradient, so a finished group stays exactly where it is.
    thetas = [nn.Parameter(row.clone()) for row in first.to(device)]
    optimiser = torch.optim.Adam(thetas, lr=settings.learning_rate)
    run = _Run(model, module, rows, A.float().to(device), fixed.to(device), unit, settings, below)
    wanted = [settings.margin] * len(A) if margins is None else list(margins)
    best = [(-torch.inf, torch.inf, 0, row) for row in first]
    active = list(range(A.shape[0]))
    with frozen(model), torch.enable_grad():
        run.run_base()
        for step in range(settings.steps + 1):
            optimiser.zero_grad(set_to_none=True)
            for group, (margin, loss) in run.losses(active, thetas).items():
                if margin >= wanted[group] or loss < best[group][1]:
                    best[group] = (margin, loss, step, thetas[group].detach().cpu().clone())
            done = {group for group in active if best[group][0] >= wanted[group]}
            active = [group for group in active if group not in done]
            for group in done:
                thetas[group].grad = None
            if progress:
                progress("optimising", len(thetas) - len(active), len(thetas))
            if not active or step == settings.steps:
                break
            optimiser.step()
            _project(thetas, settings.clamp)
    return Trained(
        residuals=fixed + unit * torch.stack([theta for *_, theta in best]),
        steps=tuple(step for _, _, step, _ in best),
        margins=tuple(margin for margin, *_ in best),
        losses=tuple(loss for _, loss, *_ in best),
    )


class _Run:
    """One training run: what stays the same from step to step."""

    def __init__(
        self,
        model: nn.Module,
        module: nn.Module,
        rows: Sequence[Row],
        A: torch.Tensor,
        fixed: torch.Tensor,
        unit: float,
        settings: RomeSettings,
        below: Sequence[str],
    ) -> None:
        self.model, self.module, self.rows = model, module, rows
        self.A, self.fixed, self.unit, self.settings = A, fixed, unit, settings
        self.group_of = torch.tensor([row.group for row in rows], device=A.device)
        teaches = torch.tensor([bool(row.answer) for row in rows], device=A.device)
        taught = torch.bincount(self.group_of[teaches], minlength=len(A)).clamp_min(1)
        kept = torch.bincount(self.group_of[~teaches], minlength=len(A)).clamp_min(1)
        # Each row's share of its group's loss, so that the sum over all rows is the sum of the groups' losses.
        self.share = torch.where(teaches, 1 / taught[self.group_of], settings.kl_factor / kept[self.group_of])
        self.below = Below(model, below)
        self.base_log_p: dict[int, torch.Tensor] = {}  # row → [vocabulary], for rows without an answer
        self._cached: tuple[list[int], list[tuple[Batch, torch.Tensor | None]]] = ([], [])

    def run_base(self) -> None:
        """One pass of the base: log-probabilities after the rows without an answer, states below the module's block."""
        everything = batches(self.model, self.rows, range(len(self.rows)), self.settings.batch_tokens)
        with torch.no_grad(), self.below.watched() as states:
            for batch in everything:
                logits = run_batch(self.model, batch)
                self.below.keep(batch, states)
                for line, index in enumerate(batch.rows.tolist()):
                    if not self.rows[index].answer:
                        self.base_log_p[index] = logits[line, 0].log_softmax(-1)

    def losses(self, active: list[int], thetas: list[nn.Parameter]) -> dict[int, tuple[float, float]]:
        """Group → (least margin, loss) of the active groups; the gradients are added to `thetas`."""
        losses = torch.zeros(len(thetas), device=self.A.device)
        margins = torch.full_like(losses, torch.inf)
        for batch, hidden in self._batches(active):
            groups = self.group_of[batch.rows]
            present, line = torch.unique(groups, return_inverse=True)
            residuals = self.fixed[present] + self.unit * torch.stack([thetas[g] for g in present.tolist()])
            update = self.A[groups][:, None, :], residuals[line][:, :, None]
            with self.below.skipped(hidden), low_rank_forward(self.module, *update):
                logits = run_batch(self.model, batch)
            nll, lead = answer_scores(logits, batch)
            loss = (nll + self._divergence(logits, batch)) * self.share[batch.rows]  # [b]
            loss.sum().backward()  # type: ignore[no-untyped-call]
            losses.index_add_(0, groups, loss.detach())
            margins.scatter_reduce_(0, groups, lead, "amin")
        penalty = self.settings.norm_penalty * torch.stack([thetas[g] for g in active]).square().mean(1)
        penalty.sum().backward()  # type: ignore[no-untyped-call]
        losses[active] += penalty.detach()
        return {group: (margins[group].item(), losses[group].item()) for group in active}

    def _divergence(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """KL(base ‖ edited) [b] of the rows without an answer, 0 for the others."""
        result = logits.new_zeros(len(batch.rows))
        lines = [line for line, index in enumerate(batch.rows.tolist()) if index in self.base_log_p]
        if not lines:
            return result
        base = torch.stack([self.base_log_p[int(batch.rows[line])] for line in lines])
        edited = logits[lines, 0].log_softmax(-1)
        return result.index_put((torch.tensor(lines, device=result.device),), (base.exp() * (base - edited)).sum(-1))

    def _batches(self, active: list[int]) -> list[tuple[Batch, torch.Tensor | None]]:
        """The active groups' rows and their states below the block [b, seq, d]; made again when a group has left."""
        if self._cached[0] != active:
            alive = set(active)
            indices = [index for index, row in enumerate(self.rows) if row.group in alive]
            made = batches(self.model, self.rows, indices, self.settings.batch_tokens)
            self._cached = (list(active), [(batch, self.below.states(batch.rows.tolist())) for batch in made])
        return self._cached[1]


def _project(thetas: list[nn.Parameter], clamp: float) -> None:
    """Shrink each θ [d_out], in place, to ‖θ‖ <= clamp · √d_out: ‖δ‖ <= clamp · norm of the residual stream."""
    with torch.no_grad():
        for theta in thetas:
            limit = clamp * theta.numel() ** 0.5
            theta.mul_((limit / theta.norm().clamp_min(limit)).clamp_max(1.0))
