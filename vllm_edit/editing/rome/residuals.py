"""Residuals δ, trained for many key groups in one batch.

For each group, A_g [d_in] is fixed before δ is known (`row_space` of the group's own columns). B_g = δ_g is trained
through the low-rank forward W x + δ_g (A_g x), so training optimises the function that is served. (ROME, arXiv
2202.05262, eq. 4, adds δ to the hooked output at one token.) The update acts on every token from the row's position on,
and on earlier tokens if whole rows are run (`editing.rome.passes`).

    loss_g = mean over rows and answer tokens of NLL(answer)
           + kl_factor · mean over rows without an answer of KL(base ‖ edited) after their last token
           + norm_penalty · mean(θ_g²),            δ_g = offset_g + unit · θ_g

unit is the RMS of the residual stream at the site, so that a step has the same scale in every model. Each step follows
the direction of steepest descent. Its length is independent of the gradient's norm: it is halved if the loss rose, and
grows again, up to the initial length, while the loss falls. Adam, which the reference codes use, moves all coordinates
by equal amounts in its first steps. It then needs a longer δ for the same margins, which changes neighbours more
(docs/methods.md has the figures). A group is finished, and leaves the batch, when each of its rows reaches its margin:
the lead of every answer token over its best rival, in nats. Training multiplies in bfloat16 if the processor supports
it (`models.fast_products`); the result is checked in the model's own precision (`editing.rome.rounds`).

The last step usually passes the margins. With `shortening`, δ is then multiplied by the smallest factor, found by
bisection, with which every row keeps its margin. So a step can be long, which needs fewer steps, without a longer δ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from vllm_edit.editing.closed_form_settings import ClosedFormSettings
from vllm_edit.editing.rome.passes import Passes, Scored
from vllm_edit.models.fast_products import fast_products
from vllm_edit.models.grouped_attention import grouped_attention
from vllm_edit.models.hooks import frozen
from vllm_edit.progress import Progress

T = TypeVar("T")

_LONGER = 1.2
"""Factor by which the step length grows after the loss fell."""
_SHORTEST = 0.5
"""Smallest factor by which a trained δ is shortened."""


@dataclass(frozen=True)
class Trained:
    """Trained residuals: [groups, d_out] float32 on the CPU.

    The other fields have one entry per group: steps, smallest margin of its rows (nats), loss, and whether every row
    reached its margin. A group without rows has 0 steps and its initial residual.
    """

    residuals: torch.Tensor
    steps: tuple[int, ...]
    margins: tuple[float, ...]
    losses: tuple[float, ...]
    reached: tuple[bool, ...]

    @classmethod
    def untrained(cls, residuals: torch.Tensor) -> Trained:
        """The state before the first step. residuals: [groups, d_out]."""
        count = len(residuals)
        return cls(residuals, (0,) * count, (torch.inf,) * count, (torch.inf,) * count, (False,) * count)

    def only(self, groups: Sequence[int]) -> Trained:
        """The entries of some groups, in this order."""

        def some(values: Sequence[T]) -> tuple[T, ...]:
            return tuple(values[group] for group in groups)

        return Trained(
            self.residuals[list(groups)], some(self.steps), some(self.margins), some(self.losses), some(self.reached)
        )

    def with_steps(self, steps: tuple[int, ...]) -> Trained:
        """With other step counts."""
        return replace(self, steps=steps)

    def then(self, later: Trained, groups: Collection[int]) -> Trained:
        """The state after further training of some groups from these residuals. Step counts are added."""

        def either(now: Sequence[T], before: Sequence[T]) -> tuple[T, ...]:
            return tuple(now[group] if group in groups else before[group] for group in range(len(before)))

        chosen = torch.tensor([[group in groups] for group in range(len(self.steps))], dtype=torch.bool)  # [groups, 1]
        return Trained(
            torch.where(chosen, later.residuals, self.residuals),
            tuple(before + more for before, more in zip(self.steps, later.steps, strict=True)),
            either(later.margins, self.margins),
            either(later.losses, self.losses),
            either(later.reached, self.reached),
        )


@dataclass(frozen=True)
class _Best:
    """The best state of one group so far. slack: the minimum over its rows of margin minus required margin."""

    theta: torch.Tensor
    slack: float = -torch.inf
    margin: float = torch.inf
    loss: float = torch.inf
    step: int = 0


def train_residuals(
    passes: Passes,
    wanted: Mapping[int, float],
    unit: float,
    settings: ClosedFormSettings,
    offsets: torch.Tensor,
    start: torch.Tensor | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train one residual for each group of the wanted rows. Deterministic; does not change the model.

    A group that does not reach its margins gets the residual with its lowest loss.

    Args:
        wanted: row → required margin in nats. Only these rows are run. A row without an answer reaches any margin.
        unit: RMS of the residual stream.
        offsets: [groups, d_out], the part of δ that is not trained.
        start: [groups, d_out], initial residuals instead of the offsets.
    """
    device, count = passes.A.device, len(passes.A)
    fixed = offsets.float()
    first = torch.zeros_like(fixed) if start is None else (start.float() - fixed) / unit
    theta = first.to(device, copy=True)
    best = [_Best(row) for row in first]
    portions = passes.portions(wanted)
    runs = [_Run(passes, {row: wanted[row] for row in rows}, fixed.to(device), unit, settings) for rows in portions]
    total = sum(len(run.groups) for run in runs)

    def reached(before: int, groups: int) -> None:
        if progress:
            progress("optimising", before + groups, total)

    done = 0
    with ExitStack() as stack:
        stack.enter_context(frozen(passes.model))
        stack.enter_context(grouped_attention(passes.model))
        for run in runs:
            passes.prepare(run.rows)
            with torch.enable_grad(), fast_products(passes.layers if settings.fast_products else []):
                best = _shortened(run, _descended(run, theta, best, partial(reached, done)), settings.shortening)
            done += len(run.groups)
            if len(runs) > 1:
                passes.release()
    return Trained(
        residuals=fixed + unit * torch.stack([state.theta for state in best]) if count else fixed,
        steps=tuple(state.step for state in best),
        margins=tuple(state.margin for state in best),
        losses=tuple(state.loss for state in best),
        reached=tuple(state.slack >= 0 for state in best),
    )


def _descended(run: _Run, theta: torch.Tensor, best: Sequence[_Best], reached: Callable[[int], None]) -> list[_Best]:
    """The best states after the run's steps. theta: [groups, d_out], changed in place.

    reached: is called with the number of groups that have their margins, after each step.
    """
    settings, found, active = run.settings, list(best), run.groups
    longest = settings.learning_rate * theta.shape[1] ** 0.5
    lengths, before = dict.fromkeys(active, longest), dict.fromkeys(active, torch.inf)
    for step in range(settings.steps + 1):
        losses, gradient = run.losses(active, theta)
        for group, (slack, margin, loss) in losses.items():
            fell = loss < before[group]
            lengths[group] = min(_LONGER * lengths[group], longest) if fell else lengths[group] / 2
            before[group] = loss
            if slack >= 0 or loss < found[group].loss:
                found[group] = _Best(theta[group].cpu().clone(), slack, margin, loss, step)
        active = [group for group in active if found[group].slack < 0]
        reached(len(run.groups) - len(active))
        if not active or step == settings.steps:
            break
        length = torch.tensor([lengths[group] for group in active], device=theta.device)[:, None]
        moved = theta[active] - length * nn.functional.normalize(gradient[active])
        theta[active] = _clamped(moved, settings.clamp)
    return found


def _shortened(run: _Run, best: Sequence[_Best], bisections: int) -> list[_Best]:
    """The groups that reached their margins with the shortest multiple of θ that still does; the others unchanged."""
    found = list(best)
    done = [group for group in run.groups if best[group].slack >= 0]
    least, most = dict.fromkeys(done, _SHORTEST), dict.fromkeys(done, 1.0)
    for _ in range(bisections if done else 0):
        middle = {group: (least[group] + most[group]) / 2 for group in done}
        tried = torch.stack([middle.get(group, 1.0) * state.theta for group, state in enumerate(best)])
        for group, (slack, margin) in run.leads(done, tried).items():
            if slack >= 0:
                most[group] = middle[group]
                found[group] = replace(best[group], theta=tried[group], slack=slack, margin=margin)
            else:
                least[group] = middle[group]
    return found


class _Run:
    """The constants of one training run."""

    def __init__(
        self,
        passes: Passes,
        wanted: Mapping[int, float],
        fixed: torch.Tensor,
        unit: float,
        settings: ClosedFormSettings,
    ) -> None:
        self.passes, self.fixed, self.unit, self.settings = passes, fixed, unit, settings
        self.group_of, device = passes.group_of, passes.A.device
        teaches = torch.tensor([bool(row.answer) for row in passes.rows], device=device)
        used = torch.zeros_like(teaches).index_fill(0, torch.tensor(list(wanted), device=device), True)
        taught = torch.bincount(self.group_of[teaches & used], minlength=len(passes.A)).clamp_min(1)
        preserved = torch.bincount(self.group_of[~teaches & used], minlength=len(passes.A)).clamp_min(1)
        # Each row's weight in its group's loss, so that the sum over all rows is the sum of the groups' losses.
        self.share = torch.where(teaches, 1 / taught[self.group_of], settings.kl_factor / preserved[self.group_of])
        self.wanted = torch.tensor([wanted.get(row, torch.inf) for row in range(len(passes.rows))], device=device)
        self.rows = list(wanted)
        self.groups = sorted({passes.rows[row].group for row in wanted})

    def losses(
        self, active: list[int], theta: torch.Tensor
    ) -> tuple[dict[int, tuple[float, float, float]], torch.Tensor]:
        """Active group → (slack, smallest margin, loss), and the gradient of the losses by theta, [groups, d_out]."""
        losses = self.settings.norm_penalty * theta.square().mean(dim=1)  # [groups]
        reach = _Reach.of(self)
        # A leaf tensor, so that the graph of each pass is differentiated and freed before the next pass.
        residuals = (self.fixed + self.unit * theta).requires_grad_()
        for scored in self.passes.run(self._rows_of(active), residuals):
            groups = self.group_of[scored.rows]
            loss = (scored.nll + self._divergence(scored)) * self.share[scored.rows]  # [k]
            loss.sum().backward()  # type: ignore[no-untyped-call]
            losses.index_add_(0, groups, loss.detach())
            reach.add(scored)
        gradient = 2 * self.settings.norm_penalty * theta / theta.shape[1]
        if residuals.grad is not None:
            gradient = gradient + self.unit * residuals.grad
        return {group: (*found, losses[group].item()) for group, found in reach.by_group(active).items()}, gradient

    def leads(self, active: Sequence[int], theta: torch.Tensor) -> dict[int, tuple[float, float]]:
        """Active group → (slack, smallest margin), without gradients. theta: [groups, d_out]."""
        reach = _Reach.of(self)
        with torch.no_grad():
            for scored in self.passes.run(self._rows_of(active), self.fixed + self.unit * theta.to(self.fixed)):
                reach.add(scored)
        return reach.by_group(active)

    def _rows_of(self, groups: Sequence[int]) -> list[int]:
        alive = set(groups)
        return [index for index in self.rows if self.passes.rows[index].group in alive]

    def _divergence(self, scored: Scored) -> torch.Tensor:
        """KL(base ‖ edited) [k]; 0 for rows with an answer."""
        result = torch.zeros(len(scored.rows), device=scored.rows.device)
        if not scored.alone:
            return result
        place = {index: number for number, index in enumerate(scored.rows.tolist())}
        base = torch.stack([self.passes.base_following(index) for index in scored.alone]).log_softmax(-1)
        edited = scored.following.log_softmax(-1)
        lines = torch.tensor([place[index] for index in scored.alone], device=scored.rows.device)
        return result.index_put((lines,), (base.exp() * (base - edited)).sum(-1))


@dataclass(frozen=True)
class _Reach:
    """How far rows have come. margins, slacks: [groups], the smallest lead, and lead minus required margin, in nats."""

    run: _Run
    margins: torch.Tensor
    slacks: torch.Tensor

    @classmethod
    def of(cls, run: _Run) -> _Reach:
        """Before any row."""
        count = len(run.passes.A)
        return cls(run, *torch.full((2, count), torch.inf, device=run.wanted.device))

    def add(self, scored: Scored) -> None:
        groups = self.run.group_of[scored.rows]
        self.margins.scatter_reduce_(0, groups, scored.lead, "amin")
        self.slacks.scatter_reduce_(0, groups, scored.lead - self.run.wanted[scored.rows], "amin")

    def by_group(self, groups: Sequence[int]) -> dict[int, tuple[float, float]]:
        """Group → (slack, smallest margin)."""
        return {group: (self.slacks[group].item(), self.margins[group].item()) for group in groups}


def _clamped(theta: torch.Tensor, clamp: float) -> torch.Tensor:
    """θ [groups, d_out], each row shrunk to ‖θ‖ <= clamp · √d_out: ‖δ‖ <= clamp · norm of the residual stream."""
    limit = clamp * theta.shape[1] ** 0.5
    shrunk: torch.Tensor = theta * (limit / theta.norm(dim=1, keepdim=True).clamp_min(limit))
    return shrunk
