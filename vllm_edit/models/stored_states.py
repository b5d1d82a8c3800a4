"""Outputs of a model's first blocks, stored from one forward pass to the next, so that each row runs through them once.

Training a hypernetwork reads the same rows many times, and an update changes nothing below the edited blocks: most of a
step would repeat what earlier steps computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from vllm_edit.models.hooks import find_module
from vllm_edit.models.lower_blocks import resumed

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM

Ids = tuple[int, ...]


@contextmanager
def stored_states(model: CausalLM, blocks: Sequence[str], tokens: int) -> Iterator[None]:
    """Within the context, `blocks` (the model's first blocks, in order) run once for each row of ids.

    A forward pass of ids, padded on the right and without a cache of keys and values, uses stored outputs; its rows
    that are not stored run first. Every other pass runs as usual, and so does every pass of a model whose blocks return
    anything but one tensor. A row's output may be from another batch than the pass, so results are equal up to
    rounding.

    Args:
        model: the model; its weights must not change within the context.
        blocks: names of its first blocks. Without blocks, the context has no effect.
        tokens: maximum number of stored tokens, each with a vector of the model's width. Above it, the rows that were
            stored first are dropped. 0: the context has no effect.
    """
    if not blocks or not tokens:
        yield
        return
    with _StoredStates(model, blocks, tokens).used():
        yield


class _StoredStates:
    """The stored outputs, and the hooks that use them."""

    def __init__(self, model: CausalLM, blocks: Sequence[str], tokens: int) -> None:
        self._model, self._blocks, self._tokens = model, blocks, tokens
        self._states: dict[Ids, torch.Tensor] = {}  # ids → [length, d]
        self._stored = 0
        self._measuring, self._fits = False, True
        self._pass = ExitStack()

    @contextmanager
    def used(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            stack.callback(self._model.register_forward_hook(self._end, always_call=True).remove)
            yield

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass: let the blocks return the stored outputs of its rows."""
        if self._measuring or not self._fits:
            return
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None or kwargs.get("use_cache") is not False or not _is_padded_on_the_right(mask):
            return
        lengths = mask.sum(1).tolist()
        rows: list[Ids] = [tuple(line[:length]) for line, length in zip(ids.tolist(), lengths, strict=True)]
        missing = {row: number for number, row in enumerate(rows) if row not in self._states}
        if missing:
            numbers = list(missing.values())
            found = self._measured(ids[numbers], mask[numbers])
            if found is None:
                self._fits = False
                return
            for row, states in zip(missing, found, strict=True):
                self._states[row] = states[: len(row)].clone()
                self._stored += len(row)
        states = pad_sequence([self._states[row] for row in rows], batch_first=True)
        self._drop_oldest()
        padding = ids.shape[1] - states.shape[1]
        self._pass.enter_context(resumed(self._model, self._blocks, pad(states, (0, 0, 0, padding))))

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """After a forward pass, also after one that an exception ended."""
        if not self._measuring:
            self._pass.close()

    def _measured(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """The blocks' output [rows, seq, d]; None if it is anything but one such tensor. Later blocks do not run."""
        found: list[torch.Tensor] = []

        def end(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 3:
                found.append(output)
            raise _Ended

        last = find_module(self._model, self._blocks[-1])
        self._measuring = True
        try:
            with torch.no_grad(), last.register_forward_hook(end), suppress(_Ended):
                self._model(input_ids=ids, attention_mask=mask, use_cache=False)
        finally:
            self._measuring = False
        return found[0] if found else None

    def _drop_oldest(self) -> None:
        for row in list(self._states) if self._stored > self._tokens else ():
            if self._stored <= self._tokens:
                return
            self._stored -= len(self._states.pop(row))


def _is_padded_on_the_right(mask: object) -> TypeGuard[torch.Tensor]:
    return isinstance(mask, torch.Tensor) and mask.ndim == 2 and bool((mask[:, 1:] <= mask[:, :-1]).all())


class _Ended(Exception):
    """Raised by a hook to end a forward pass; it never leaves `_measured`."""
