"""Importing a base model from any source as a plain folder in Hugging Face layout, checked before it appears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from vllm_edit.errors import EditError
from vllm_edit.models import import_checks as checks
from vllm_edit.models.attention import attention_options
from vllm_edit.models.bos import put_bos, puts_bos
from vllm_edit.models.gguf import GgufFile
from vllm_edit.models.greedy import continuations
from vllm_edit.models.hf_folder import HfFolder
from vllm_edit.models.hub import downloaded
from vllm_edit.models.layout import find_layout
from vllm_edit.models.source import Read, Source
from vllm_edit.models.staging import refuse_existing, staged
from vllm_edit.progress import Progress, silent
from vllm_edit.text.prompts import prompt_ids

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUESTION = "What is the capital of France?"
_SHOWN_TOKENS = 12

_STEPS = ("finding the model", "reading the weights", "saving", "checking", "answering")


@dataclass(frozen=True)
class Continuation:
    """The imported model's greedy continuation of a prompt; chat: as the answer to a turn of its chat template."""

    prompt: str
    answer: str
    chat: bool = False


@dataclass(frozen=True)
class Imported:
    """A finished import. difference: the largest difference between the folder's logits and the source's."""

    folder: Path
    source: str
    dtype: str
    puts_bos: bool
    difference: float
    notes: tuple[str, ...]
    continuations: tuple[Continuation, ...]


def source_of(name: str | Path) -> Source:
    """The source with this name: a .gguf file, a folder in Hugging Face layout, or a model of the hub.

    Raises:
        EditError: there is no such source, or the hub does not provide it.
    """
    path = Path(name)
    if path.suffix.lower() == ".gguf" or path.is_file():
        return GgufFile(path)
    if path.is_dir():
        return HfFolder(str(name), path)
    expected = "expected a .gguf file, a folder in Hugging Face layout, or the id of a model on the hub"
    return HfFolder(str(name), downloaded(str(name), expected))


def import_model(
    name: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    check: Callable[[Path], None] = lambda folder: None,
    progress: Progress = silent,
) -> Imported:
    """Write a model as plain weights, config and tokenizer to the folder `out`, which appears after all checks passed.

    Args:
        dtype: dtype of the saved weights; default: that of a folder's weights, or float32 for a GGUF file.
        check: called with a folder that contains only config.json; raises EditError to reject the model.
        progress: called with (name of the step, completed steps, total steps).

    Raises:
        EditError: the source cannot be read, a check failed, or `out` exists; `out` is not changed.
    """
    out = Path(out)
    refuse_existing(out)
    progress(_STEPS[0], 0, len(_STEPS))
    source = source_of(name)
    with staged(out) as folder:
        config = source.config()
        _save_config(config, folder)
        check(folder)
        saved = source.dtype(config) if dtype is None else DTYPES[dtype]
        progress(_STEPS[1], 1, len(_STEPS))
        read = source.read(config)
        _set_bos(read.tokenizer, source)
        checks.check_turn(read.tokenizer)
        checks.check_rows(read.tokenizer, len(read.model.get_input_embeddings().weight))
        prompts = [prompt_ids(read.tokenizer, prompt) for prompt in checks.PROMPTS]
        expected = checks.logits(read.model, prompts)
        progress(_STEPS[2], 2, len(_STEPS))
        _save(read, folder, saved)
        read.model.to("meta")  # frees its memory for the reloaded model
        progress(_STEPS[3], 3, len(_STEPS))
        model, tokenizer = _checked(folder, read, source.puts_bos)
        difference = checks.check_logits(checks.logits(model, prompts), expected, saved)
        progress(_STEPS[4], 4, len(_STEPS))
        shown = tuple(_continuations(model, tokenizer))
        progress(_STEPS[4], len(_STEPS), len(_STEPS))
    kind = str(saved).removeprefix("torch.")
    return Imported(out, source.name, kind, puts_bos(tokenizer), difference, read.notes, shown)


def _save_config(config: PreTrainedConfig, folder: Path) -> None:
    """Write config.json with the architecture's name, which the config of a GGUF file lacks."""
    if not getattr(config, "architectures", None):
        with torch.device("meta"):
            config.architectures = [type(_causal_model(config)).__name__]
    config.save_pretrained(folder)


def _causal_model(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except ValueError as error:  # no causal model of this config's type
        raise EditError(f"{config.model_type} is not a causal language model; expected a decoder") from error
    return model


def _set_bos(tokenizer: PreTrainedTokenizerFast, source: Source) -> None:
    if source.puts_bos is None:
        return
    if source.puts_bos and tokenizer.bos_token_id is None:
        raise EditError(f"{source.name} requires BOS before plain text but defines no BOS token; use another file")
    put_bos(tokenizer, source.puts_bos)


def _save(read: Read, folder: Path, dtype: torch.dtype) -> None:
    """Write weights, config, generation config and tokenizer. Converts the model to `dtype` in place."""
    try:
        read.model.to(dtype).save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):  # safetensors makes them readable only by their owner
            weights.chmod((folder / "config.json").stat().st_mode)
        read.tokenizer.save_pretrained(folder)
    except ValueError as error:  # a generation config that contradicts itself
        raise EditError(f"the model cannot be saved: {' '.join(str(error).split())}") from error


def _checked(folder: Path, read: Read, wants_bos: bool | None) -> tuple[CausalLM, PreTrainedTokenizerFast]:
    """Load the model (float32) and tokenizer from the folder, and check everything except the logits."""
    tokenizer = HfFolder(str(folder), folder).tokenizer()
    checks.check_round_trip(tokenizer)
    checks.check_open_end(tokenizer)
    checks.check_bos(tokenizer, wants_bos)
    checks.check_same_ids(tokenizer, read.tokenizer)
    options = attention_options(read.model.config)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, **options
    ).eval()
    find_layout(model)
    checks.check_cache(model)
    return model, tokenizer


def _continuations(model: CausalLM, tokenizer: PreTrainedTokenizerFast) -> list[Continuation]:
    asked = [(prompt, False) for prompt in checks.PROMPTS]
    if getattr(tokenizer, "chat_template", None):
        asked.append((_QUESTION, True))
    answers = []
    for prompt, chat in asked:
        (ids,) = continuations(model, tokenizer, [prompt_ids(tokenizer, prompt, chat)], _SHOWN_TOKENS)
        answers.append(Continuation(prompt, str(tokenizer.decode(ids, skip_special_tokens=True)), chat))
    return answers
