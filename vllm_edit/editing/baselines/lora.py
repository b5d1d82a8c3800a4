"""LoRA (arXiv 2106.09685) with PEFT, trained on the edit's prompt alone: the obvious baseline.

The defaults are those of EasyEdit's LoRA (rank 8, alpha 32, dropout 0.1, 70 steps with learning rate 5·10⁻³).
Departure: it adapts the site's modules instead of the query and value projections, because the engine wraps only the
site.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from transformers import Conv1D

from vllm_edit.artefacts.site import Site
from vllm_edit.composition.solver import as_saved
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import ExampleSettings, example_rows, recheck, train
from vllm_edit.editing.method import MethodResult
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen
from vllm_edit.models.rows import leads
from vllm_edit.progress import Progress
from vllm_edit.settings import CountFromZero, PositiveCount, PositiveReal, Real, Seed, between

if TYPE_CHECKING:
    from peft import PeftModel

    from vllm_edit.models.causal_lm import CausalLM


class LoraSettings(ExampleSettings):
    """Settings of LoRA at the site."""

    title: ClassVar[str] = "lora"
    advice: ClassVar[str] = "raise `steps`, `learning_rate` or `rank`"

    steps: CountFromZero = 70
    """Maximum number of steps."""
    learning_rate: PositiveReal = 0.005
    """Adam's learning rate for A and B."""
    rank: PositiveCount | None = 8
    """Rank of the adapter; None takes the site's maximum."""
    alpha: PositiveReal = 32.0
    """Scale of the update, which is alpha / rank · B·A."""
    dropout: Annotated[Real, between(0, 1, high_too=False)] = 0.1
    """Dropout probability of the adapter's inputs during training."""
    seed: Seed = 0
    """Random seed of A's initial values and of the dropout."""


def compile_edits(
    base: Base,
    site: Site,
    moment: SecondMoment,
    edits: Sequence[Edit],
    settings: LoraSettings,
    progress: Progress | None = None,
) -> MethodResult:
    """Train one adapter on all edits together, read it back from PEFT's files, and check the edits again.

    Raises:
        UnsafeEdit: an edit missed its target; the message names the edit.
        EditError: the requested rank exceeds the site's maximum.
    """
    rank = settings.rank_at(site)
    rows = example_rows(edits, base.tokenizer)
    with frozen(base.model), torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        twin = _twin(base.model)
        adapted = _adapted(twin, site, rank, settings)
        _drop_in_adapter_only(adapted)
        parameters = [parameter for parameter in twin.parameters() if parameter.requires_grad]
        trained = train(twin, rows, parameters, settings.learning_rate, settings, progress=progress)
        adapted.eval()
        margins = leads(twin, rows, settings.batch_tokens)
        delta = _read_back(adapted)
    report = recheck(base, site, edits, rows, delta, margins, settings)
    measured = {"steps": trained.steps, "loss": trained.loss}
    return MethodResult(delta, settings=settings.identity(rank), report=report.model_copy(update=measured))


def _twin(model: CausalLM) -> CausalLM:
    """A copy of the model with new modules and shared tensors, so that PEFT can replace modules of the copy."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _adapted(twin: CausalLM, site: Site, rank: int, settings: LoraSettings) -> PeftModel:
    """PEFT's model of `twin`, whose modules are replaced in place. Only the adapter requires a gradient."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(site.modules),
        fan_in_fan_out=all(isinstance(find_module(twin, name), Conv1D) for name in site.modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(twin, config)


def _drop_in_adapter_only(adapted: PeftModel) -> None:
    """Put the adapter's dropout into training mode and all other modules into eval mode, in place.

    The base's own dropout (GPT-2 and OPT have 0.1) is no setting of this method and is not part of the served model.
    """
    from peft.tuners.lora import LoraLayer

    adapted.eval()
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout.train()


def _read_back(adapted: PeftModel) -> Delta:
    """The delta of the adapter as PEFT saves it, with its scale folded in, in the precision of saved deltas."""
    with tempfile.TemporaryDirectory(prefix="vllm-edit-lora-") as folder:
        # Embeddings are not adapted. Without this option, PEFT looks for the base's config on the hub.
        adapted.save_pretrained(folder, save_embedding_layers=False)
        read = Delta.load_peft(folder)
    return Delta({name: as_saved(part) for name, part in read.parts.items()})
