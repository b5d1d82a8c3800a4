"""Forward passes over suffixes: only the tokens from a row's first changed token on, packed into lines.

Ignoring its leak to earlier tokens, an update at a site's module acts on a row from the site's token on. Attention is
causal, so the earlier tokens' keys and values equal the base's in every block, and so do all states below the site's
block. Both are computed once (`Suffixes.keep`). A step then runs the suffixes alone: several rows share a line, and a
mask restricts attention to the token's own row.

Such a pass does not contain the leak to earlier tokens. Callers must check the final update in full passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from vllm_edit.models.lower_blocks import block_output, resumed
from vllm_edit.models.rows import Row, batches, device_of, run_batch

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM

logger = logging.getLogger(__name__)

LINE_TOKENS = 32
"""Suffix tokens per line: few enough that masked attention to other rows costs little compared with the weights."""
_PREFIX_TOKENS = 256
_TOLERANCE, _ROUNDINGS = 1e-2, 8
"""Accepted difference of a logit: the first, or so many roundings of the largest logit in the model's precision. In
half precision thirty blocks make up to four."""


@dataclass(frozen=True)
class _States:
    """The base's states of a row with a prefix of p tokens and a suffix of s tokens.

    hidden: output at the suffix of the block below the site's block, [s, d]; None if the site's block is the first.
    keys, values: those of the prefix, one tensor [heads, p, head_dim] for each block from the site's on.
    """

    hidden: torch.Tensor | None
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Pack:
    """Suffixes of rows in n lines of T tokens, after P tokens of prefixes.

    rows: [k] indices of the rows.
    owner: [n, T] index into `rows` for each token, -1 for padding.
    input_ids, positions: [n, T].
    mask: [n, 1, T, P + T], 0 if a token attends to another, else the dtype's minimum.
    hidden: [n, T, d] or None.
    places: [m] flat indices into n·T of the tokens whose logits are read.
    of: [m] index into `rows` for each place.
    answers: [m] expected next token, -1 for rows without an answer.
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
        """(mean NLL of the answer's tokens, minimum lead over the best rival in nats) of each row, [k] each.

        logits: [m, V]. The lead is detached. A row without an answer has NLL 0 and an infinite lead.
        """
        # The loss uses the logits unsliced: the gradient of a slice would be a second tensor of the full size.
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

    def __init__(self, model: CausalLM, rows: Sequence[Row], blocks: Sequence[str], tokens: int) -> None:
        """blocks: names of the blocks below the site's block. tokens: maximum number of tokens in one pass."""
        self.model, self.rows, self.blocks, self.tokens = model, rows, blocks, tokens
        self._states: dict[int, _States] = {}

    def keep(self, indices: Iterable[int]) -> dict[int, torch.Tensor] | None:
        """Run the base in full over the rows at `indices` that have no stored states, and store their states.

        Returns:
            Row → the base's logits before each token of its answer, [m, V]. None if passes over suffixes do not
            reproduce this model's logits; then no new states are stored.
        """
        missing = [index for index in indices if index not in self._states]
        expected: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for batch in batches(self.model, self.rows, missing, self.tokens):
                cache = DynamicCache()
                with block_output(self.model, self.blocks[-1]) if self.blocks else _nothing() as states:
                    logits = run_batch(self.model, batch, cache)
                layers = _keys_and_values(cache.layers[len(self.blocks) :])
                if bool(self.blocks) != bool(states) or not layers:
                    return None
                for line, index in enumerate(batch.rows.tolist()):
                    row = self.rows[index]
                    part = slice(row.first, row.length)
                    self._states[index] = _States(
                        states[0][line, part].clone() if states else None,
                        tuple(keys[line, :, : row.first].clone() for keys, _ in layers),
                        tuple(values[line, :, : row.first].clone() for _, values in layers),
                    )
                    expected[index] = logits[line, : max(1, len(row.answer))]
            if self._reproduces(expected):
                return expected
        for index in missing:
            self._states.pop(index, None)
        return None

    def release(self) -> None:
        """Forget the stored states."""
        self._states.clear()

    def _reproduces(self, expected: Mapping[int, torch.Tensor]) -> bool:
        """True if passes over the suffixes reproduce the `expected` logits, row → [answer tokens, V]."""
        rounding = _ROUNDINGS * torch.finfo(next(self.model.parameters()).dtype).eps
        try:
            for pack in self.packs(list(expected)):
                found = self.run(pack)
                for place, index in enumerate(pack.rows.tolist()):
                    wanted = expected[index].float()
                    accepted = max(_TOLERANCE, rounding * float(wanted.abs().max()))
                    if not float((found[pack.of == place] - wanted).abs().max()) <= accepted:  # NaN is no match
                        logger.info("suffixes do not reproduce the model's logits: every pass is run in full")
                        return False
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            # Models without support for a given cache or a mask per token raise errors of different types.
            logger.info("the model cannot run suffixes (%s): every pass is run in full", error)
            return False
        return True

    def packs(self, indices: Sequence[int]) -> list[Pack]:
        """The stored rows at `indices` in packs of at most `tokens` tokens, each with lines of similar length."""
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

        head = self.model.get_output_embeddings()
        below = resumed(self.model, self.blocks, pack.hidden) if pack.hidden is not None else _nothing()
        with head.register_forward_pre_hook(select), below:
            out = self.model(
                input_ids=pack.input_ids,
                attention_mask=pack.mask,
                position_ids=pack.positions,
                past_key_values=pack.prefix,
                use_cache=True,
            )
        logits: torch.Tensor = out.logits[0]
        return logits.float()

    def _width(self, line: Sequence[int]) -> int:
        return sum(self.rows[index].length - self.rows[index].first for index in line)

    def _pack(self, lines: Sequence[Sequence[int]]) -> Pack:
        device, dtype = device_of(self.model), next(self.model.parameters()).dtype
        order = [index for line in lines for index in line]
        T = max(map(self._width, lines))
        P = max(sum(self.rows[index].first for index in line) for line in lines)
        n, some = len(lines), self._states[order[0]]
        owner = torch.full((n, T), -1)
        seen = torch.full((n, P + T), -1)  # the row of each token that can be attended to
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
                stored = self._states[index].hidden
                if hidden is not None and stored is not None:
                    hidden[number, start : start + size] = stored
                first = number * T + start + len(row.ids) - 1 - before
                wanted = row.answer or (-1,)
                places += range(first, first + len(wanted))
                of += [place] * len(wanted)
                answers += wanted
                start, end = start + size, end + before
        seen[:, P:] = owner
        own = (owner[:, :, None] == seen[:, None, :]) | (
            owner[:, :, None] < 0
        )  # padding attends to everything, so that no softmax is empty
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
        """For each block, the concatenated keys (or values) of the prefixes in each line, [n, heads, P, head_dim]."""
        result = []
        for block in range(len(self._states[lines[0][0]].keys)):
            joined = [
                torch.cat([getattr(self._states[index], which)[block] for index in line], dim=1) for line in lines
            ]
            result.append(torch.stack([nn.functional.pad(line, (0, 0, 0, P - line.shape[1])) for line in joined]))
        return result


class _Prefix(DynamicCache):
    """Keys and values of earlier tokens for the blocks from `first` on. Passes do not extend it and can share it."""

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


def _keys_and_values(layers: Iterable[object]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's keys and values, [rows, heads, tokens, head_dim]; empty if a layer has no keys."""
    found = list[tuple[torch.Tensor, torch.Tensor]]()
    for layer in layers:
        if not isinstance(layer, CacheLayerMixin) or layer.keys is None or layer.values is None:
            return []
        found.append((layer.keys, layer.values))
    return found


@contextmanager
def _nothing() -> Iterator[list[torch.Tensor]]:
    yield []


def _lines(rows: Sequence[Row], indices: Sequence[int]) -> list[list[int]]:
    """Pack the rows into lines: longest suffix first, each in the first line with room for its suffix and prefix."""
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
