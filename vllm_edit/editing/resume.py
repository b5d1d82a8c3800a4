"""Running a model from a block on: the blocks below a site see nothing of an update there, so they run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vllm_edit.editing.hooks import find_module


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
