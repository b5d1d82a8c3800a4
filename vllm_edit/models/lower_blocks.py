"""Running a model from a given block on: an update does not affect the blocks below its site, so they run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Batch


class Below:
    """Stored outputs of a model's first `blocks` for every row, so that these blocks do not run in every pass.

    It is empty without blocks, and for a model that cannot be resumed; all blocks run then.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str]) -> None:
        self.model, self.blocks = model, blocks
        self._hidden: dict[int, torch.Tensor] = {}  # row → [length, d]

    @contextmanager
    def watched(self) -> Iterator[list[torch.Tensor]]:
        """Within the context, the list contains the blocks' output of the latest forward pass, for `keep`."""
        if not self.blocks:
            yield []
            return
        with block_output(self.model, self.blocks[-1]) as states:
            yield states

    def keep(self, batch: Batch, states: Sequence[torch.Tensor]) -> None:
        """Store the states of the batch that was run last."""
        if not states:
            return
        lengths = batch.attention_mask.sum(1).tolist()
        for line, (index, length) in enumerate(zip(batch.rows.tolist(), lengths, strict=True)):
            self._hidden[index] = states[0][line, :length].clone()

    def release(self) -> None:
        """Forget the stored states."""
        self._hidden.clear()

    def states(self, rows: Sequence[int]) -> torch.Tensor | None:
        """The stored states of these rows, [rows, seq, d] padded to the longest; None if no states are stored."""
        return pad_sequence([self._hidden[index] for index in rows], batch_first=True) if self._hidden else None

    @contextmanager
    def skipped(self, states: torch.Tensor | None) -> Iterator[None]:
        """Within the context, the blocks return `states` without computing; if `states` is None, they run."""
        if states is None:
            yield
            return
        with resumed(self.model, self.blocks, states):
            yield


@contextmanager
def block_output(model: nn.Module, block: str) -> Iterator[list[torch.Tensor]]:
    """Within the context, the list contains `block`'s output [batch, seq, d] of the latest forward pass, detached.

    It remains empty if the block returns anything but one such tensor (GPT-J also returns attention weights). Such a
    model cannot be resumed and is run in full.
    """
    latest: list[torch.Tensor] = []

    def hook(module: nn.Module, args: object, output: object) -> None:
        latest[:] = [output.detach()] if isinstance(output, torch.Tensor) and output.ndim == 3 else []

    with find_module(model, block).register_forward_hook(hook):
        yield latest


@contextmanager
def resumed(model: nn.Module, blocks: Sequence[str], hidden: torch.Tensor) -> Iterator[None]:
    """Within the context, each of `blocks` (the model's first blocks, in order) returns `hidden` without computing.

    hidden: [batch, seq, d], the output of the last of these blocks for the batch. The rest of the model runs as usual.
    The blocks' forward methods are restored on exit.
    """
    skipped = [find_module(model, name) for name in blocks]
    own = [block.__dict__.get("forward") for block in skipped]

    def forward(*args: object, **kwargs: object) -> torch.Tensor:
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
