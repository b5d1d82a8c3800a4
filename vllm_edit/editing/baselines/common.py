"""Shared code of the naive baselines: settings, training on the edit's prompt alone, and the check afterwards.

The baselines use no contexts, paraphrases or preserved prompts: they are the single-example fine-tuning with which
closed-form editing, MEND and IKE are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import nn

from vllm_edit.artefacts.reports import CompileReport, EditReport
from vllm_edit.artefacts.site import Site
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.edit import Edit
from vllm_edit.editing.method import refuse_missed
from vllm_edit.editing.method_settings import CompileSettings
from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONObject
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import Row, answer_scores, batches, leads, run_batch
from vllm_edit.progress import Progress
from vllm_edit.settings import (
    CountFromZero,
    PositiveCount,
    PositiveReal,
    Real,
    RealFromZero,
)
from vllm_edit.text.prompts import answer_ids, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vllm_edit.models.causal_lm import CausalLM


class ExampleSettings(CompileSettings):
    """Settings of training on one example and of the check afterwards."""

    advice: ClassVar[str]
    """Advice for an edit that missed its target."""

    steps: CountFromZero = 25
    """Maximum number of steps."""
    learning_rate: PositiveReal = 0.025
    """Adam's learning rate."""
    stop_loss: RealFromZero = 0.0
    """Training stops when the mean NLL of the targets' tokens is below this value. 0: all steps are made."""
    rank: PositiveCount | None = None
    """Rank of the delta; None takes the site's maximum."""
    served_margin: Real = 0.1
    """Minimum lead of the target in nats after the edit's prompt, under the delta as saved."""

    def identity(self, rank: int) -> JSONObject:
        """The JSON-serialisable settings that identify a compiled patch, with the rank that was used."""
        return self.lasting() | {"rank": rank}

    def check_at(self, site: Site) -> None:
        self.rank_at(site)

    def rank_at(self, site: Site) -> int:
        """The rank to use at `site`.

        Raises:
            EditError: the rank exceeds the site's maximum.
        """
        if self.rank is not None and self.rank > site.max_rank:
            raise EditError(
                f"rank {self.rank} exceeds the site's maximum of {site.max_rank}: use --set rank={site.max_rank}, or "
                "make a store whose site has a higher maximum rank (vllm-edit store init --rank)"
            )
        return self.rank or site.max_rank


class RecheckSettings(Protocol):
    """The settings that `recheck` reads."""

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
    """The result of training: the number of updates, and the last computed loss (mean NLL per target token over edits).

    loss: None if `steps` is 0, because no loss was computed.
    """

    steps: int
    loss: float | None


def example_rows(edits: Sequence[Edit], tokenizer: PreTrainedTokenizerFast, chat: bool = False) -> list[Row]:
    """Each edit's prompt, as plain text or as a chat turn, with its target; row i belongs to edit i."""
    rows = []
    for index, edit in enumerate(edits):
        ids = tuple(prompt_ids(tokenizer, edit.prompt, chat))
        answer = tuple(answer_ids(tokenizer, edit.prompt, edit.target_new, chat))
        rows.append(Row(index, index, "chat" if chat else "plain", ids, len(ids) - 1, answer))
    return rows


def form_rows(edits: Sequence[Edit], tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    """`example_rows` as plain text, then as chat turns if the tokenizer has a chat template."""
    forms = (False, True) if getattr(tokenizer, "chat_template", None) else (False,)
    return [row for chat in forms for row in example_rows(edits, tokenizer, chat)]


def train(
    model: CausalLM,
    rows: Sequence[Row],
    parameters: Sequence[nn.Parameter],
    step_size: float,
    settings: ExampleSettings,
    after_step: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> Trained:
    """Train `parameters` in place with Adam until the mean over rows of each answer's mean NLL is below `stop_loss`.

    The loss covers only the answer's tokens, each predicted from the tokens before it (teacher forcing), as in
    EasyEdit's FT-M. EasyEdit's FT-L scores every target token with the distribution after the prompt, which is wrong
    for targets of several tokens.

    Args:
        step_size: Adam's learning rate.
        after_step: called after every update, for example to clamp the parameters.
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
    settings: RecheckSettings,
) -> CompileReport:
    """Check every edit's target under the delta as saved; returns a report with `edits` and `norm`.

    trained_margins: [edits], leads in nats under the trained update, before truncation and cast.

    Raises:
        UnsafeEdit: a target does not lead by `served_margin`, unless `on_missed` is "report"; the message names the
            edits.
    """
    with frozen(base.model), delta.apply(base.model):
        served = leads(base.model, rows, settings.batch_tokens)
    reports: list[EditReport] = []
    for row, edit in zip(rows, edits, strict=True):
        margin, trained = float(served[row.edit]), float(trained_margins[row.edit])
        problem = (
            f"the target leads by {margin:.2f} nats ({trained:.2f} as trained), at least {settings.served_margin:g} is "
            f"needed; {settings.advice}"
        )
        reports.append(
            EditReport(
                edit=row.edit,
                subject=edit.subject,
                prompt=edit.prompt,
                target=edit.target_new,
                trained_margin=trained,
                served_margin=margin,
                problems=() if margin >= settings.served_margin else (problem,),
            )
        )
    report = CompileReport(edits=tuple(reports), norm=_relative_norm(base, site, delta))
    refuse_missed(report, settings.on_missed)
    return report


def _relative_norm(base: Base, site: Site, delta: Delta) -> float:
    """‖ΔW‖ / ‖W‖, Frobenius, over all of the site's modules."""
    weights = [linear_weight(find_module(base.model, name)).detach().float().norm() for name in site.modules]
    updates = torch.tensor([part.norm() for part in delta.parts.values()])
    return float(updates.norm() / torch.stack(weights).norm())
