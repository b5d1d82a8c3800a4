"""What the naive methods share: settings, training on an edit's prompt and nothing else, and the re-check afterwards.

No contexts, no other wordings, no probes to keep: this is the post-training on the one example that closed-form
editing, MEND and IKE are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import nn

from vllm_edit.artefacts.site import Site
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.editing.checked_settings import (
    CountFromZero,
    MethodSettings,
    PositiveCount,
    PositiveReal,
    Real,
    RealFromZero,
    checked,
)
from vllm_edit.editing.settings import Progress
from vllm_edit.errors import EditError, UnsafeEdit
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import Row, answer_scores, batches, leads, run_batch
from vllm_edit.patch import Edit
from vllm_edit.prompting import answer_ids, prompt_ids
from vllm_edit.text import change


@checked
class ExampleSettings(MethodSettings):
    """Training on one example, and what is refused afterwards."""

    advice: ClassVar[str]
    """What to do about an edit that was missed."""

    steps: CountFromZero = 25
    """Most steps of Adam."""
    learning_rate: PositiveReal = 0.025
    """Adam's step."""
    stop_loss: RealFromZero = 0.0
    """Training stops when the mean NLL of the targets' tokens is below it. 0: all steps are made."""
    rank: PositiveCount | None = None
    """Rank of the delta; None takes the site's maximum."""
    served_margin: Real = 0.1
    """Least margin in nats of the target after the edit's prompt, with the delta as it will be saved."""
    batch_tokens: PositiveCount = 8192
    """Most tokens in one forward pass, padding included: the memory budget. Not part of the identity."""
    on_missed: Literal["error", "report"] = "error"
    """What a missed target causes: UnsafeEdit, or a line in the report. Not part of the identity."""

    def identity(self, rank: int) -> dict[str, Any]:
        """The JSON-able settings that a compiled patch is identified by, with the rank that was used."""
        return self.lasting() | {"rank": rank}

    def rank_at(self, site: Site) -> int:
        """The rank to use.

        Raises:
            EditError: it is more than the site's maximum.
        """
        if self.rank is not None and self.rank > site.max_rank:
            raise EditError(
                f"rank {self.rank} exceeds the site's maximum of {site.max_rank}: use --set rank={site.max_rank}, or "
                "make a store whose site has a higher maximum rank (vllm-edit store init --rank)"
            )
        return self.rank or site.max_rank


class Checked(Protocol):
    """The settings that `recheck` needs of a method."""

    @property
    def advice(self) -> str: ...
    @property
    def served_margin(self) -> float: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def on_missed(self) -> Literal["error", "report"]: ...


@dataclass(frozen=True)
class Trained:
    """How training ended: updates made, and the loss (mean NLL per target token, over the edits) before the last.

    loss: None where no step was asked for: it was never computed, and JSON has no infinity.
    """

    steps: int
    loss: float | None


def example_rows(edits: Sequence[Edit], tokenizer: Any, chat: bool = False) -> list[Row]:
    """Each edit's prompt, as plain text or as a chat turn, with its target; row i belongs to edit i."""
    rows = []
    for index, edit in enumerate(edits):
        ids = tuple(prompt_ids(tokenizer, edit.prompt, chat))
        answer = tuple(answer_ids(tokenizer, edit.prompt, edit.target_new, chat))
        rows.append(Row(index, index, "chat" if chat else "plain", ids, len(ids) - 1, answer))
    return rows


def train(
    model: nn.Module,
    rows: Sequence[Row],
    parameters: Sequence[nn.Parameter],
    step_size: float,
    settings: ExampleSettings,
    after_step: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> Trained:
    """Adam on `parameters` (in place) until the mean over rows of each answer's mean token NLL is below `stop_loss`.

    The loss is masked to the answer's tokens, each predicted from those before it (teacher forcing): FT-M of EasyEdit.
    Its FT-L trains every target token on the one distribution after the prompt, which is wrong for targets of several
    tokens.
    """
    optimiser = torch.optim.Adam(parameters, lr=step_size)
    everything = batches(model, rows, range(len(rows)), settings.batch_tokens)
    loss: float | None = None
    with torch.enable_grad():
        for step in range(settings.steps):
            if progress:
                progress("training", step, settings.steps)
            optimiser.zero_grad(set_to_none=True)
            loss = 0.0
            for batch in everything:
                nll, _ = answer_scores(run_batch(model, batch), batch)
                part = nll.sum() / len(rows)
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.item()
            if loss < settings.stop_loss:
                return Trained(step, loss)
            optimiser.step()
            after_step()
    return Trained(settings.steps, loss)


def recheck(
    base: Base,
    site: Site,
    edits: Sequence[Edit],
    rows: Sequence[Row],
    delta: Delta,
    trained_margins: torch.Tensor,
    settings: Checked,
) -> dict[str, Any]:
    """Every edit's target with the delta as it will be saved: the report's `edits`, `missed` and `norm`.

    trained_margins: [edits], leads in nats under the update as trained, before it was truncated and cast.

    Raises:
        UnsafeEdit: a target does not lead by `served_margin`, by name, unless `on_missed` is "report".
    """
    with frozen(base.model), delta.apply(base.model):
        served = leads(base.model, rows, settings.batch_tokens)
    records: list[dict[str, Any]] = []
    for row, edit in zip(rows, edits, strict=True):
        margin, trained = float(served[row.edit]), float(trained_margins[row.edit])
        problem = (
            f"the target leads by {margin:.2f} nats ({trained:.2f} as trained), at least {settings.served_margin:g} is "
            f"needed; {settings.advice}"
        )
        records.append(
            {
                "edit": row.edit,
                "subject": edit.subject,
                "prompt": edit.prompt,
                "target": edit.target_new,
                "trained_margin": trained,
                "served_margin": margin,
                "problems": [] if margin >= settings.served_margin else [problem],
            }
        )
    missed = [record for record in records if record["problems"]]
    if missed and settings.on_missed == "error":
        lines = [f"edit {one['edit']} ({change(one['prompt'], one['target'])}): {one['problems'][0]}" for one in missed]
        raise UnsafeEdit("\n".join(lines))
    return {"edits": records, "missed": [one["edit"] for one in missed], "norm": _relative_norm(base, site, delta)}


def _relative_norm(base: Base, site: Site, delta: Delta) -> float:
    """‖ΔW‖ / ‖W‖, Frobenius, over all of the site's modules."""
    weights = [linear_weight(find_module(base.model, name)).detach().float().norm() for name in site.modules]
    updates = torch.tensor([part.norm() for part in delta.parts.values()])
    return float(updates.norm() / torch.stack(weights).norm())
