"""Running a model from a block on: the blocks below a site see nothing of an update there, so they run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Batch


class Below:
    """What the first `blocks` of a model put out for every row, kept so that these run once and not in every pass.

    Empty for no blocks, and for a model that cannot be resumed: everything is run then.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str]) -> None:
        self.model, self.blocks = model, blocks
        self._hidden: dict[int, torch.Tensor] = {}  # row → [length, d]

    @contextmanager
    def watched(self) -> Iterator[list[torch.Tensor]]:
        """Inside, the list holds the blocks' output of the latest forward pass, for `keep`."""
        if not self.blocks:
            yield []
            return
        with block_output(self.model, self.blocks[-1]) as states:
            yield states

    def keep(self, batch: Batch, states: Sequence[torch.Tensor]) -> None:
        """Keep the rows of a batch that has just been run."""
        if not states:
            return
        lengths = batch.attention_mask.sum(1).tolist()
        for line, (index, length) in enumerate(zip(batch.rows.tolist(), lengths, strict=True)):
            self._hidden[index] = states[0][line, :length].clone()

    def states(self, rows: Sequence[int]) -> torch.Tensor | None:
        """The kept states of these rows, [rows, seq, d] padded to the longest; None where there are none."""
        return pad_sequence([self._hidden[index] for index in rows], batch_first=True) if self._hidden else None

    @contextmanager
    def skipped(self, states: torch.Tensor | None) -> Iterator[None]:
        """Inside, the blocks do no work and put out `states`; without any they run."""
        if states is None:
            yield
            return
        with resumed(self.model, self.blocks, states):
            yield


@contextmanager
def block_output(model: nn.Module, block: str) -> Iterator[list[torch.Tensor]]:
    """Inside, the list holds `block`'s output [batch, seq, d] in the latest forward pass, detached.

    It stays empty where the block puts out anything but one such tensor (GPT-J adds attention weights): such a model
    cannot be resumed and is run in full.
    """
    latest: list[torch.Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        latest[:] = [output.detach()] if isinstance(output, torch.Tensor) and output.ndim == 3 else []

    handle = find_module(model, block).register_forward_hook(hook)
    try:
        yield latest
    finally:
        handle.remove()


@contextmanager
def resumed(model: nn.Module, blocks: Sequence[str], hidden: torch.Tensor) -> Iterator[None]:
    """Inside, each of `blocks` (the first ones of the model, in order) does no work and puts out `hidden`.

    hidden: [batch, seq, d], the last of these blocks' output for the batch that is run. What the model does before,
    around and after its blocks stays the model's own. The blocks' forwards are restored on leaving.
    """
    skipped = [find_module(model, name) for name in blocks]
    own = [block.__dict__.get("forward") for block in skipped]

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden

    try:
        for block in skipped:
            block.__dict__["forward"] = forward
        yield
    finally:
        for block, before in zip(skipped, own, strict=True):
            if before is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = before
