"""Greedy generation in batches with a Hugging Face model, padding of prompts, and the ids that end a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from vllm_edit.models.grouped_attention import grouped_attention
from vllm_edit.models.padding import padded, padding_id
from vllm_edit.models.penalties import Penalties
from vllm_edit.models.shared_prefix import read_once

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM


@torch.no_grad()
def continuations(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    shared: int = 0,
) -> list[list[int]]:
    """Greedy continuations of prompts' ids, in one batch. The caller must cut tokens after the end of a turn.

    As in vLLM's server, only the end ids and the `penalties` of the model's generation_config apply. Padding is on the
    left; with the mask, every row has the same positions as without padding.

    Args:
        shared: number of first tokens that all prompts have in common, less than the length of the shortest. These
            tokens are read once; padding is after them.
    """
    beginning = list(prompts[0][:shared])
    ids, mask = padded([prompt[shared:] for prompt in prompts], pad_id(model, tokenizer), left=True)
    if shared:
        ids = torch.cat([torch.tensor([beginning] * len(prompts)), ids], dim=1)  # [rows, shared + longest rest]
        mask = torch.cat([torch.ones(len(prompts), shared, dtype=mask.dtype), mask], dim=1)
    past = read_once(model, beginning, len(prompts)) if shared else None
    settings = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=end_ids(model, tokenizer),
        pad_token_id=pad_id(model, tokenizer),
    )
    device = model.device
    penalties = Penalties.of(model.generation_config)
    penalised = [] if penalties == Penalties() else [_Penalised(penalties, prompts, ids.shape[1])]
    with grouped_attention(model), _no_own_settings(model):
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=settings,
            logits_processor=LogitsProcessorList(penalised),
            past_key_values=past,
        )
    continued: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return continued


class _Penalised(LogitsProcessor):
    """Applies `Penalties` in transformers' `generate`, whose own penalties would count the padding.

    width: length of the padded prompts.
    """

    def __init__(self, penalties: Penalties, prompts: Sequence[Sequence[int]], width: int) -> None:
        self._penalties, self._prompts, self._width = penalties, prompts, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._penalties.applied(scores, self._prompts, input_ids[:, self._width :].tolist())


@contextmanager
def _no_own_settings(model: CausalLM) -> Iterator[None]:
    """Replace the model's generation config, from which `generate` takes missing settings, by an empty config."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def continued(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """`continuations` of any number of prompts, at most `size` of them in one batch, in the prompts' order."""
    found: dict[int, list[int]] = {}
    for rows in batches([len(prompt) for prompt in prompts], size):
        found.update(
            zip(rows, continuations(model, tokenizer, [prompts[row] for row in rows], max_tokens), strict=True)
        )
        progress(len(found), len(prompts))
    return [found[row] for row in range(len(prompts))]


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Row numbers in batches of at most `size` rows of similar length, short rows first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    yield from (order[start : start + size] for start in range(0, len(order), size))


def end_ids(model: CausalLM, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that end a turn: those of the model's generation config, and the tokenizer's end of text."""
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (*ends, tokenizer.eos_token_id) if token is not None})


def pad_id(model: CausalLM, tokenizer: PreTrainedTokenizerFast) -> int:
    """The id for padding. Any id works, because padding is masked or after the end of the turn."""
    return padding_id(model, tokenizer.pad_token_id, *end_ids(model, tokenizer))
