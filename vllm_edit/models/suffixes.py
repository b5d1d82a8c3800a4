"""Running only the end of each row: the tokens from its first changed one on, in lines without padding.

An update at a site's module acts on a row from the site's token on, if its leak to earlier tokens is left out.
Attention is causal, so the earlier tokens' keys and values are the base's in every block, and so are all states below
the site's block. Both are computed once (`Suffixes.keep`). A step then runs the suffixes alone: several rows share a
line, and a mask lets each token see its own row only.

The leak to earlier tokens is not part of such a pass. Whoever trains by it checks the final update in full passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from vllm_edit.models.lower_blocks import block_output, resumed
from vllm_edit.models.rows import Row, batches, device_of, run_batch

logger = logging.getLogger(__name__)

LINE_TOKENS = 32
"""Suffix tokens of one line: few enough that attention to the other rows of a line costs little beside the weights."""
_PREFIX_TOKENS = 256
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class _Kept:
    """The base's states of one row with p tokens before its first changed token and s from it on.

    hidden: output of the block below the site's at the suffix, [s, d]; None where the site's block is the first.
    keys, values: of the prefix, one tensor [heads, p, head_dim] for each block from the site's on.
    """

    hidden: torch.Tensor | None
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Pack:
    """Rows' suffixes in lines of T tokens, behind P tokens of prefixes.

    rows: [k] indices of the rows.  owner: [n, T] place in `rows` of each token, -1 for padding.
    input_ids, positions: [n, T].  mask: [n, 1, T, P + T], 0 where a token sees another, else the least number.
    hidden: [n, T, d] or None.  places: [m] flat indices into n·T of the tokens whose logits are read.  of: [m] place in
    `rows` of each.  answers: [m] the token that is to follow, -1 for rows without an answer.
    """

    rows: torch.Tensor
    owner: torch.Tensor
    input_ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    hidden: torch.Tensor | None
    prefix: _Prefix
    places: torch.Tensor
    of: torch.Tensor
    answers: torch.Tensor

    def scores(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean NLL of the answer's tokens, least lead over the best rival in nats) of each row, [k]; logits [m, V].

        The lead is detached. A row without an answer has NLL 0 and an infinite lead.
        """
        # No part of the logits is taken out before the loss: its gradient would be a second tensor of their size.
        nll = nn.functional.cross_entropy(logits, self.answers, ignore_index=-1, reduction="none")  # [m]
        given = logits.detach()
        own = given.gather(1, self.answers.clamp_min(0)[:, None])[:, 0]
        best = given.topk(2, dim=-1)
        rival = torch.where(best.indices[:, 0] == self.answers, best.values[:, 1], best.values[:, 0])
        taught, size = self.answers >= 0, len(self.rows)
        count = torch.zeros(size, device=logits.device).index_add(0, self.of, taught.float()).clamp_min(1)
        mean = logits.new_zeros(size).index_add(0, self.of, nll) / count
        leads = torch.where(taught, own - rival, torch.inf)
        return mean, logits.new_full((size,), torch.inf).scatter_reduce(0, self.of, leads, "amin")


class Suffixes:
    """The base's states of rows, and passes over their suffixes. Rows are numbered as in `rows`."""

    def __init__(self, model: nn.Module, rows: Sequence[Row], blocks: Sequence[str], tokens: int) -> None:
        """blocks: the names of the model's blocks below the site's. tokens: most tokens in one pass."""
        self.model, self.rows, self.blocks, self.tokens = model, rows, blocks, tokens
        self._kept: dict[int, _Kept] = {}

    def keep(self, indices: Iterable[int]) -> dict[int, torch.Tensor] | None:
        """Run the base over the rows at `indices` that are not kept yet, in full, and keep their states.

        Returns:
            Row → the base's logits before each token of its answer, [m, V]. None if passes over suffixes do not give
            this model's own logits; then nothing new is kept.
        """
        missing = [index for index in indices if index not in self._kept]
        expected: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for batch in batches(self.model, self.rows, missing, self.tokens):
                cache = DynamicCache()
                with block_output(self.model, self.blocks[-1]) if self.blocks else _nothing() as states:
                    logits = run_batch(self.model, batch, cache)
                if bool(self.blocks) != bool(states) or len(cache.layers) <= len(self.blocks):
                    return None
                for line, index in enumerate(batch.rows.tolist()):
                    row = self.rows[index]
                    part = slice(row.first, row.length)
                    layers = cache.layers[len(self.blocks) :]
                    self._kept[index] = _Kept(
                        states[0][line, part].clone() if states else None,
                        tuple(layer.keys[line, :, : row.first].clone() for layer in layers),
                        tuple(layer.values[line, :, : row.first].clone() for layer in layers),
                    )
                    expected[index] = logits[line, : max(1, len(row.answer))]
            if self._reproduces(expected):
                return expected
        for index in missing:
            self._kept.pop(index, None)
        return None

    def _reproduces(self, expected: Mapping[int, torch.Tensor]) -> bool:
        """True if passes over the suffixes give the `expected` logits, row → [answer tokens, V]."""
        try:
            for pack in self.packs(list(expected)):
                found = self.run(pack)
                for place, index in enumerate(pack.rows.tolist()):
                    if (found[pack.of == place] - expected[index]).abs().max() > _TOLERANCE:
                        logger.info("suffixes do not give the model's own logits: every pass is run in full")
                        return False
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            # A model that cannot take states of earlier tokens or a mask for every token says so in its own way.
            logger.info("the model cannot run suffixes (%s): every pass is run in full", error)
            return False
        return True

    def packs(self, indices: Sequence[int]) -> list[Pack]:
        """The kept rows at `indices` in packs of at most `tokens` tokens, each with lines of nearly equal length."""
        lines = _lines(self.rows, indices)
        made: list[Pack] = []
        while lines:
            width = max(map(self._width, lines[:1]))
            most = max(1, self.tokens // width)
            made.append(self._pack(lines[:most]))
            lines = lines[most:]
        return made

    def run(self, pack: Pack) -> torch.Tensor:
        """Logits [m, V] float32 at the pack's places. Hooks on the site's module see tokens [n, T, ·]."""

        def select(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            return (args[0].flatten(0, 1)[pack.places][None],)  # [n, T, d] → [1, m, d]

        handle = self.model.get_output_embeddings().register_forward_pre_hook(select)  # type: ignore[operator]
        try:
            with resumed(self.model, self.blocks, pack.hidden) if pack.hidden is not None else _nothing():
                out = self.model(
                    input_ids=pack.input_ids,
                    attention_mask=pack.mask,
                    position_ids=pack.positions,
                    past_key_values=pack.prefix,
                    use_cache=True,
                )
        finally:
            handle.remove()
        logits: torch.Tensor = out.logits[0]
        return logits.float()

    def _width(self, line: Sequence[int]) -> int:
        return sum(self.rows[index].length - self.rows[index].first for index in line)

    def _pack(self, lines: Sequence[Sequence[int]]) -> Pack:
        device, dtype = device_of(self.model), next(self.model.parameters()).dtype
        order = [index for line in lines for index in line]
        T = max(map(self._width, lines))
        P = max(sum(self.rows[index].first for index in line) for line in lines)
        n, some = len(lines), self._kept[order[0]]
        owner = torch.full((n, T), -1)
        seen = torch.full((n, P + T), -1)  # the row of each token that can be seen
        input_ids, positions = torch.zeros(n, T, dtype=torch.long), torch.zeros(n, T, dtype=torch.long)
        hidden = None if some.hidden is None else some.hidden.new_zeros(n, T, some.hidden.shape[-1])
        places, of, answers = list[int](), list[int](), list[int]()
        for number, line in enumerate(lines):
            end, start = 0, 0
            for index in line:
                row, place = self.rows[index], order.index(index)
                size, before = row.length - row.first, row.first
                ids = (*row.ids, *row.answer[:-1])[row.first :]
                owner[number, start : start + size] = place
                seen[number, end : end + before] = place
                input_ids[number, start : start + size] = torch.tensor(ids)
                positions[number, start : start + size] = torch.arange(before, row.length)
                kept = self._kept[index].hidden
                if hidden is not None and kept is not None:
                    hidden[number, start : start + size] = kept
                first = number * T + start + len(row.ids) - 1 - before
                wanted = row.answer or (-1,)
                places += range(first, first + len(wanted))
                of += [place] * len(wanted)
                answers += wanted
                start, end = start + size, end + before
        seen[:, P:] = owner
        own = (owner[:, :, None] == seen[:, None, :]) | (
            owner[:, :, None] < 0
        )  # padding sees all: no row of a softmax is empty
        causal = torch.ones(T, P + T, dtype=torch.bool).tril(P)
        mask = torch.zeros(n, 1, T, P + T, dtype=dtype).masked_fill(~(own & causal)[:, None], torch.finfo(dtype).min)
        return Pack(
            rows=torch.tensor(order, device=device),
            owner=owner.to(device),
            input_ids=input_ids.to(device),
            positions=positions.to(device),
            mask=mask.to(device),
            hidden=hidden,
            prefix=_Prefix(
                self._side_by_side("keys", lines, P), self._side_by_side("values", lines, P), len(self.blocks)
            ),
            places=torch.tensor(places, device=device),
            of=torch.tensor(of, device=device),
            answers=torch.tensor(answers, device=device),
        )

    def _side_by_side(self, which: str, lines: Sequence[Sequence[int]], P: int) -> list[torch.Tensor]:
        """Per block: the prefixes' keys (or values) of each line one behind the other, [n, heads, P, head_dim]."""
        result = []
        for block in range(len(self._kept[lines[0][0]].keys)):
            joined = [torch.cat([getattr(self._kept[index], which)[block] for index in line], dim=1) for line in lines]
            result.append(torch.stack([nn.functional.pad(one, (0, 0, 0, P - one.shape[1])) for one in joined]))
        return result


class _Prefix(DynamicCache):  # type: ignore[misc]  # transformers has no types here
    """Keys and values of earlier tokens for the blocks from `first` on. It never grows: every pass can use it."""

    def __init__(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], first: int) -> None:
        super().__init__()
        self._keys, self._values, self._first = keys, values, first

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        block = layer_idx - self._first
        return (
            torch.cat([self._keys[block], key_states], dim=-2),
            torch.cat([self._values[block], value_states], dim=-2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._keys[0].shape[-2]


@contextmanager
def _nothing() -> Iterator[list[torch.Tensor]]:
    yield []


def _lines(rows: Sequence[Row], indices: Sequence[int]) -> list[list[int]]:
    """The rows in lines: longest suffix first, each into the first line with room for its suffix and its prefix."""
    size = {index: rows[index].length - rows[index].first for index in indices}
    room = max(LINE_TOKENS, max(size.values(), default=0))
    behind = max(_PREFIX_TOKENS, max((rows[index].first for index in indices), default=0))
    lines, left = list[list[int]](), list[tuple[int, int]]()
    for index in sorted(indices, key=lambda index: (-size[index], index)):
        need = size[index], rows[index].first
        line = next((n for n, free in enumerate(left) if free[0] >= need[0] and free[1] >= need[1]), len(lines))
        if line == len(lines):
            lines.append([])
            left.append((room, behind))
        lines[line].append(index)
        left[line] = left[line][0] - need[0], left[line][1] - need[1]
    return sorted(lines, key=lambda line: -sum(size[index] for index in line))
