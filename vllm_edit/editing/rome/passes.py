"""Forward passes of a training step: each row runs under the update of its own key group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from vllm_edit.deltas.forward import low_rank_forward, routed_forward
from vllm_edit.models.lower_blocks import Below
from vllm_edit.models.rows import Batch, Row, answer_scores, batches, run_batch
from vllm_edit.models.suffixes import Pack, Suffixes

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM


_STORED = 16
"""Tokens whose states are stored at once, in passes: they then take about as much memory as a pass with gradients."""


@dataclass(frozen=True)
class Scored:
    """Scores of some rows. rows: [k] their indices. nll, lead: [k], as in `rows.answer_scores`; the lead is detached.

    alone: indices of the rows without an answer. following: [alone, V], the logits after their last token.
    """

    rows: torch.Tensor
    nll: torch.Tensor
    lead: torch.Tensor
    alone: list[int]
    following: torch.Tensor


class Passes:
    """Passes over `rows` with ΔW = δ_g A_g for the rows of group g.

    By default, a pass computes only the tokens from a row's position on (`models.suffixes`). With `whole`, or if the
    model does not support that, it computes all tokens, from the site's block on. With `together`, the other groups of
    a group's set also act on its rows; these rows do not train the residuals of those groups.
    """

    def __init__(
        self,
        model: CausalLM,
        module: nn.Module,
        rows: Sequence[Row],
        A: torch.Tensor,
        below: Sequence[str],
        tokens: int,
        *,
        whole: bool = False,
        together: Sequence[Sequence[int]] = (),
    ) -> None:
        """Set up the passes; nothing is run yet.

        Args:
            A: [groups, d_in], on the model's device.
            below: names of the blocks before the module's block.
            tokens: maximum number of tokens in one pass.
            whole: compute all tokens of every row.
            together: sets of groups that are served as one update; only for whole rows.
        """
        self.model, self.module, self.rows, self.A, self.tokens = model, module, rows, A, tokens
        self.group_of = torch.tensor([row.group for row in rows], device=A.device)
        self._suffixes = None if whole else Suffixes(model, rows, below, tokens)
        self._set_of = list(range(len(A)))  # group → the first group of its set
        self._beside = torch.eye(len(A), dtype=torch.bool, device=A.device)  # [g, h]: h acts on the rows of g
        for groups in together:
            members = torch.tensor(list(groups), device=A.device)
            self._beside[members[:, None], members] = True
            for group in groups:
                self._set_of[group] = groups[0]
        self._below = Below(model, below)
        self._base: dict[int, torch.Tensor] = {}  # row → the base's logits [V], for rows without an answer
        self._ready: set[int] = set()
        self._packs: tuple[list[int], list[Pack]] = ([], [])
        self._batches: tuple[list[int], list[tuple[Batch, torch.Tensor | None]]] = ([], [])

    @property
    def whole(self) -> bool:
        """True if passes compute all tokens of a row."""
        return self._suffixes is None

    @property
    def layers(self) -> list[nn.Module]:
        """The leaf modules that a pass runs: all except those of the blocks below."""
        lower = tuple(f"{block}." for block in self._below.blocks)
        named = self.model.named_modules()
        return [leaf for name, leaf in named if not any(leaf.children()) and not name.startswith(lower)]

    def portions(self, indices: Iterable[int]) -> list[list[int]]:
        """The rows, in portions whose states are stored at once.

        The rows of one group, or of groups that are served together, are in one portion. The states of one edit's rows
        take some 20 MiB in a model of 135 million parameters (float32), so those of a thousand edits would fill the
        memory.
        """
        rows = list(indices)
        sizes: dict[int, int] = {}
        for index in rows:
            together = self._set_of[self.rows[index].group]
            sizes[together] = sizes.get(together, 0) + self.rows[index].length
        portion_of, count, free = dict[int, int](), 0, 0
        for together, size in sizes.items():
            if size > free:
                count, free = count + 1, _STORED * self.tokens
            portion_of[together] = count - 1
            free -= size
        found: list[list[int]] = [[] for _ in range(count)]
        for index in rows:
            found[portion_of[self._set_of[self.rows[index].group]]].append(index)
        return found

    def release(self) -> None:
        """Forget the stored states. A released row must be prepared again."""
        self._ready.clear()
        self._base.clear()
        self._packs, self._batches = ([], []), ([], [])
        self._below.release()
        if self._suffixes is not None:
            self._suffixes.release()

    def prepare(self, indices: Iterable[int]) -> None:
        """Run the base once over these rows and store the states that later passes need. Prepared rows are skipped."""
        new = [index for index in indices if index not in self._ready]
        self._ready.update(new)
        if not new:
            return
        if self._suffixes is not None:
            stored = self._suffixes.keep(new)
            if stored is not None:
                self._base |= {index: logits[0] for index, logits in stored.items() if not self.rows[index].answer}
                return
            self._suffixes = None
            new = sorted(self._ready)
        with torch.no_grad(), self._below.watched() as states:
            for batch in batches(self.model, self.rows, new, self.tokens):
                self._base |= dict(zip(*_following(run_batch(self.model, batch), batch, self.rows), strict=True))
                self._below.keep(batch, states)

    def base_following(self, row: int) -> torch.Tensor:
        """The base's logits [V] after a row without an answer. The row must be prepared."""
        return self._base[row]

    def run(self, indices: Sequence[int], residuals: torch.Tensor) -> Iterator[Scored]:
        """Scores of the prepared rows at `indices`, pass by pass. residuals: δ [groups, d_out], differentiable."""
        if self._suffixes is not None:
            yield from self._run_suffixes(self._suffixes, list(indices), residuals)
            return
        if self._batches[0] != list(indices):
            made = batches(self.model, self.rows, indices, self.tokens)
            self._batches = (list(indices), [(batch, self._below.states(batch.rows.tolist())) for batch in made])
        for batch, hidden in self._batches[1]:
            update = self._update(self.group_of[batch.rows], residuals)
            with self._below.skipped(hidden), low_rank_forward(self.module, *update):
                logits = run_batch(self.model, batch)
            yield Scored(batch.rows, *answer_scores(logits, batch), *_following(logits, batch, self.rows))

    def _update(self, groups: torch.Tensor, residuals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A [h, d_in] and B [b, d_out, h] for rows of these groups [b], where h counts the groups that act on them."""
        present = self._beside[groups].any(dim=0).nonzero()[:, 0]
        own = groups[:, None] == present  # [b, h]
        others = self._beside[groups][:, present] & ~own
        mine, fixed = residuals[present].T, residuals.detach()[present].T  # [d_out, h]
        return self.A[present], mine * own[:, None, :] + fixed * others[:, None, :]

    def _run_suffixes(self, suffixes: Suffixes, indices: list[int], residuals: torch.Tensor) -> Iterator[Scored]:
        if self._packs[0] != indices:
            self._packs = (indices, suffixes.packs(indices))
        for pack in self._packs[1]:
            present, number = torch.unique(self.group_of[pack.rows], return_inverse=True)
            routes = torch.where(pack.owner >= 0, number[pack.owner], -1)  # [n, T]
            with routed_forward(self.module, self.A[present], residuals[present], routes):
                logits = suffixes.run(pack)
            places = (pack.answers < 0).nonzero()[:, 0]
            alone = pack.rows[pack.of[places]].tolist()
            yield Scored(pack.rows, *pack.scores(logits), alone, logits[places])


def _following(logits: torch.Tensor, batch: Batch, rows: Sequence[Row]) -> tuple[list[int], torch.Tensor]:
    """The batch's rows without an answer, and the logits [rows, V] after their last tokens. logits: [b, m, V]."""
    lines = [line for line, index in enumerate(batch.rows.tolist()) if not rows[index].answer]
    return batch.rows[lines].tolist(), logits[lines, 0]
