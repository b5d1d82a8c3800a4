"""The source of a base model. Reading it gives float32 weights on the CPU, independent of the stored dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

    from vllm_edit.models.causal_lm import CausalLM


@dataclass(frozen=True)
class Read:
    """A model as read from its source, before it is saved.

    notes: sentences about parts of the source that the model lacks.
    """

    model: CausalLM
    tokenizer: PreTrainedTokenizerFast
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """One model to import. Every member raises EditError, in one line, if the source is incomplete or unreadable."""

    @property
    def name(self) -> str:
        """The source's name in messages."""

    @property
    def puts_bos(self) -> bool | None:
        """Whether BOS is added before plain text; None if only the tokenizer states it."""

    def config(self) -> PreTrainedConfig:
        """The model's config without quantisation."""

    def dtype(self, config: PreTrainedConfig) -> torch.dtype:
        """Default dtype of the saved weights."""

    def read(self, config: PreTrainedConfig) -> Read:
        """The model in float32 and eval mode, with its tokenizer."""
