"""Runs of one prompt with a corrupted subject, and with clean states restored.

ROME, arXiv 2202.05262, section 2.1. There are three kinds of run for each prompt:

- clean: the model reads the prompt; o is its most likely next token, and P[o] the probability of this token;
- corrupted: noise is added to the embeddings of the subject's tokens; P*[o] is the probability of o in this run;
- restored: the corrupted run, in which some modules return their clean output at some tokens.

Noise samples and restorations share forward passes, within a budget of tokens. A restoration does not affect blocks
below its first layer, so these blocks reuse the states of the corrupted run (`models.lower_blocks.resumed`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch

from vllm_edit.models.base import Base
from vllm_edit.models.hooks import capture_outputs, replace_output
from vllm_edit.models.layout import Layout
from vllm_edit.models.lower_blocks import block_output, resumed
from vllm_edit.models.rows import Batch, Row, answer_scores, run_batch

Kind = Literal["hidden", "mlp", "attention"]
KINDS: tuple[Kind, ...] = ("hidden", "mlp", "attention")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Restoration:
    """The modules whose clean outputs are restored: those of one kind in `layers`, at `tokens` (prompt indices)."""

    kind: Kind
    layers: tuple[int, ...]
    tokens: tuple[int, ...]


class CorruptedPrompt:
    """The clean and the corrupted runs of one prompt, with which restored runs are computed.

    answer: the id of o. clean: P[o]. corrupted: P*[o] of every noise sample, [samples] float32 on the CPU.
    Use it within `torch.no_grad()` and `frozen(model)`. Memory: samples × tokens × hidden size × layers.
    """

    def __init__(self, base: Base, ids: Sequence[int], start: int, noise: torch.Tensor, batch_tokens: int) -> None:
        """Compute the clean and the corrupted runs.

        Args:
            ids: the prompt's ids.
            start: index of the subject's first token.
            noise: [samples, n, d], added to the embeddings of the n tokens from `start` on.
            batch_tokens: maximum number of tokens in one forward pass.
        """
        self._base, self._ids, self._start = base, tuple(ids), start
        self._noise, self._samples = noise.to(base.device), noise.shape[0]
        self._most_rows = max(1, batch_tokens // len(self._ids))
        self._embedding = embedding_name(base)
        names = [name for kind in KINDS for name in modules_of(base.layout, kind)]
        with capture_outputs(base.model, names) as captured:
            logits = run_batch(base.model, self._batch(1, answer=0))[0, 0]  # [vocabulary]
        self._clean_states = {name: captured[name][0].clone() for name in names}  # [seq, d]
        self.answer = int(logits.argmax())
        self.clean = float(logits.softmax(-1)[self.answer])
        self._below: dict[int, torch.Tensor] = {}  # layer → its output in the corrupted runs, [samples, seq, d]
        self.corrupted = self._run_corrupted()

    def restored(self, restorations: Sequence[Restoration]) -> torch.Tensor:
        """P*[o] with each restoration, [restorations, samples] float32 on the CPU."""
        result = torch.empty(len(restorations), self._samples)
        by_first_layer: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for place, restoration in enumerate(restorations):
            first = min(restoration.layers, default=0)
            by_first_layer[first] += [(place, sample) for sample in range(self._samples)]
        for first, runs in by_first_layer.items():
            for some in _parts(runs, self._most_rows):
                places, samples = (torch.tensor(indices) for indices in zip(*some, strict=True))
                result[places, samples] = self._run(samples, [restorations[place] for place, _ in some], first)
        return result

    def _run_corrupted(self) -> torch.Tensor:
        """P*[o] [samples]. Also stores the states after every block, if the model's blocks return a single tensor."""
        layers, found, states = (
            self._base.layout.layers,
            list[torch.Tensor](),
            defaultdict[int, list[torch.Tensor]](list),
        )
        for samples in _parts(range(self._samples), self._most_rows):
            with ExitStack() as stack:
                outputs = [stack.enter_context(block_output(self._base.model, layer)) for layer in layers]
                found.append(self._run(torch.tensor(samples), [], 0))
            for layer, output in enumerate(outputs):
                states[layer] += output
        self._below = {layer: torch.cat(parts) for layer, parts in states.items() if parts}
        return torch.cat(found)

    def _run(self, samples: torch.Tensor, restorations: Sequence[Restoration], first: int) -> torch.Tensor:
        """P*[o] [rows]: row i is the corrupted run of sample `samples[i]` with `restorations[i]`, if there are any.

        No restoration is below layer `first`.
        """
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)  # module → (row, token)
        for row, restoration in enumerate(restorations):
            modules = modules_of(self._base.layout, restoration.kind)
            for layer in restoration.layers:
                places[modules[layer]] += [(row, token) for token in restoration.tokens]
        model, own = self._base.model, samples.to(self._noise.device)
        with ExitStack() as stack:
            stack.enter_context(replace_output(model, self._embedding, self._adding(self._noise[own])))
            if first - 1 in self._below:
                below = self._below[first - 1][own]  # [rows, seq, d]
                stack.enter_context(resumed(model, self._base.layout.layers[:first], below))
            for name, pairs in places.items():
                where = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).mT
                put_back = partial(_put_back, places=where, clean=self._clean_states[name])
                stack.enter_context(replace_output(model, name, put_back))
            batch = self._batch(len(samples), self.answer)
            nll, _ = answer_scores(run_batch(model, batch), batch)
        return (-nll).exp().cpu()

    def _adding(self, noise: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that adds the rows' noise [rows, n, d] to the subject's tokens in embeddings [rows, seq, d]."""

        def add(embeddings: torch.Tensor) -> torch.Tensor:
            noisy = embeddings.clone()
            noisy[:, self._start : self._start + noise.shape[1]] += noise.to(noisy.dtype)
            return noisy

        return add

    def _batch(self, rows: int, answer: int) -> Batch:
        row = Row(0, 0, "traced", self._ids, len(self._ids) - 1, (answer,))
        return Batch.of([row], [0] * rows, self._base.device)


def modules_of(layout: Layout, kind: Kind) -> tuple[str, ...]:
    """The modules, one per layer, whose outputs are the states of this kind.

    The MLP's output is that of its down projection (`find_layout` checks this), because some model families have no
    separate MLP module.
    """
    return {"hidden": layout.layers, "mlp": layout.down, "attention": layout.attention}[kind]


def embedding_name(base: Base) -> str:
    """The runtime name of the token embeddings."""
    embedding = base.model.get_input_embeddings()
    return str(next(name for name, module in base.model.named_modules() if module is embedding))


def _put_back(states: torch.Tensor, places: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """The states [rows, seq, d], replaced by those of `clean` [seq, d] at `places` [2, n] (rows and tokens)."""
    rows, tokens = places.to(states.device)
    restored = states.clone()
    restored[rows, tokens] = clean[tokens]
    return restored


def _parts(items: Sequence[_Item], most: int) -> Iterator[Sequence[_Item]]:
    """The items in order, at most `most` at a time."""
    for start in range(0, len(items), most):
        yield items[start : start + most]
