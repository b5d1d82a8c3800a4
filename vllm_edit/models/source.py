"""The source of a base model. Reading it gives float32 on the CPU, whatever the weights are stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Read:
    """A model as its source gives it, before anything of it is saved.

    `notes`: sentences that name parts of the source which the model lacks.
    """

    model: Any
    tokenizer: Any
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """One model to import. Every member raises EditError, in one line, if the source is incomplete or unreadable."""

    @property
    def name(self) -> str:
        """The source as a message names it."""

    @property
    def puts_bos(self) -> bool | None:
        """Whether BOS stands before plain text, if the source says so apart from its tokenizer."""

    def config(self) -> Any:
        """The model's config without quantisation."""

    def dtype(self, config: Any) -> torch.dtype:
        """Default dtype of the saved weights."""

    def read(self, config: Any) -> Read:
        """The model in float32 and eval mode, with its tokenizer."""
