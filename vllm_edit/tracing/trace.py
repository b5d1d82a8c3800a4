"""Causal tracing: the layers and tokens at which a model recalls a fact (ROME's first step).

arXiv 2202.05262, section 2.1 and appendix B. Let o be the model's own next token, and P, P* and P*_r its probabilities
in the clean run, in the corrupted run, and in the corrupted run with a restoration r (see `corruption`), the last two
as means over noise samples:

    total effect     TE   = P[o] − P*[o]
    indirect effect  IE_r = P*_r[o] − P*[o]

Noise is N(0, (noise · σ)²), where σ is the standard deviation of the embeddings' entries over the tokens of all traced
subjects, as in the paper's code. Hidden states are restored one layer and one token at a time; MLP and attention
outputs are restored in a window of layers around the layer (the paper: 10 of 48), because a single output has little
effect.

Departures: every prompt has its own noise generator, seeded by its tokens, so that its numbers do not depend on the
other prompts; if a prompt contains its subject more than once, only the last occurrence is corrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from vllm_edit.digest import digest_json
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.hooks import frozen
from vllm_edit.models.lengths import check_length
from vllm_edit.models.positions import Located, locate
from vllm_edit.progress import Progress
from vllm_edit.settings import PositiveCount, RealFromZero, Seed, Settings
from vllm_edit.text.prompts import answer_ids
from vllm_edit.text.quoting import quoted
from vllm_edit.tracing.corruption import KINDS, CorruptedPrompt, Kind, Restoration

log = logging.getLogger(__name__)

_WINDOW_SHARE = 10 / 48  # GPT-2 XL's in the paper


class TraceSettings(Settings):
    """Settings of tracing. `batch_tokens` does not affect the results, except for rounding."""

    title: ClassVar[str] = "trace"

    noise: RealFromZero = 3.0
    """Standard deviation of the noise, in units of that of the subjects' embeddings."""
    samples: PositiveCount = 10
    """Noise samples for each prompt."""
    window: PositiveCount | None = None
    """Number of layers in which MLP and attention outputs are restored; None takes 10/48 of the depth, at least one."""
    seed: Seed = 0
    """Random seed of the noise."""
    batch_tokens: PositiveCount = 8192
    """Maximum number of tokens in one forward pass: the memory budget."""

    def window_of(self, depth: int) -> int:
        """The window, in layers, for a model of `depth` layers."""
        return min(depth, self.window or max(1, round(_WINDOW_SHARE * depth)))


@dataclass(frozen=True)
class TracedPrompt:
    """One prompt's effects, as means over the noise samples.

    tokens: the prompt's tokens as text. first, last: indices of the subject's first and last token.
    answer: the traced token as text.
    believed: whether the answer is the first token of `target_true` or of an alias of it; None if the edit does not
    declare `target_true`.
    clean, corrupted: probabilities of the answer.
    effects: kind → IE [layers, tokens from `first` on]; for MLP and attention, the layer is the middle of the window.
    Tokens before the subject are not corrupted and therefore have no effects.
    """

    prompt: str
    subject: str
    tokens: tuple[str, ...]
    first: int
    last: int
    answer: str
    believed: bool | None
    clean: float
    corrupted: float
    effects: Mapping[Kind, torch.Tensor]

    @property
    def total_effect(self) -> float:
        return self.clean - self.corrupted


@dataclass(frozen=True)
class Trace:
    """The traces of several prompts on one base. deviation: σ of the subjects' embeddings. window: in layers."""

    base: str
    depth: int
    settings: TraceSettings
    deviation: float
    window: int
    prompts: tuple[TracedPrompt, ...]


def trace(
    base: Base,
    edits: Sequence[Edit],
    settings: TraceSettings | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Trace the base's own answer to each edit's prompt. Deterministic; does not change the base.

    Raises:
        EditError: there are no edits, or a prompt does not contain its subject.
        UnsafeEdit: a prompt is longer than the model's context.
    """
    if not edits:
        raise EditError("there is nothing to trace: expected at least one edit, with its prompt and subject")
    settings = settings or TraceSettings()
    depth = len(base.layout.layers)
    window = settings.window_of(depth)
    places = [locate(base.tokenizer, edit.prompt, edit.subject) for edit in edits]
    for edit, place in zip(edits, places, strict=True):
        check_length(base.model, len(place.ids), f"the prompt {quoted(edit.prompt)}")
    traced = []
    with unchanged(base, exact=False), torch.no_grad(), frozen(base.model):
        deviation = embedding_deviation(base, places)
        for number, (edit, place) in enumerate(zip(edits, places, strict=True)):
            noise = settings.noise * deviation * _noise(base, place, settings)
            run = CorruptedPrompt(base, place.ids, place.subject_first, noise, settings.batch_tokens)
            traced.append(_traced(base, edit, place, run, window))
            log.debug("traced %r: %.3f clean, %.3f corrupted", edit.prompt, traced[-1].clean, traced[-1].corrupted)
            if progress:
                progress("tracing", number + 1, len(edits))
    return Trace(base.name, depth, settings, deviation, window, tuple(traced))


def embedding_deviation(base: Base, places: Sequence[Located]) -> float:
    """Standard deviation of all entries of the subjects' token embeddings."""
    embedding = base.model.get_input_embeddings()
    ids = [token for place in places for token in place.ids[place.subject_first : place.subject_last + 1]]
    return float(embedding(torch.tensor(ids, device=base.device)).float().std())


def window_around(layer: int, window: int, depth: int) -> tuple[int, ...]:
    """`window` layers with `layer` in the middle (rounded up for an even window), fewer at the ends of the model."""
    start = layer - window // 2
    return tuple(range(max(0, start), min(depth, start + window)))


def _noise(base: Base, place: Located, settings: TraceSettings) -> torch.Tensor:
    """Standard normal noise [samples, subject tokens, d], sampled on the CPU to be the same on every device."""
    generator = torch.Generator().manual_seed(int(digest_json([settings.seed, place.ids])[:15], 16))
    width = base.model.get_input_embeddings().embedding_dim
    return torch.randn(settings.samples, place.subject_last + 1 - place.subject_first, width, generator=generator)


def _traced(base: Base, edit: Edit, place: Located, run: CorruptedPrompt, window: int) -> TracedPrompt:
    depth, tokens = len(base.layout.layers), range(place.subject_first, len(place.ids))
    restorations = [
        Restoration(kind, (layer,) if kind == "hidden" else window_around(layer, window, depth), (token,))
        for kind in KINDS
        for layer in range(depth)
        for token in tokens
    ]
    corrupted = float(run.corrupted.mean())
    effects = run.restored(restorations).mean(1) - corrupted
    by_kind = effects.reshape(len(KINDS), depth, len(tokens))
    known = {token for old in edit.old_answers for token in answer_ids(base.tokenizer, edit.prompt, old)[:1]}
    return TracedPrompt(
        prompt=edit.prompt,
        subject=edit.subject,
        tokens=tuple(str(base.tokenizer.decode([token])) for token in place.ids),
        first=place.subject_first,
        last=place.subject_last,
        answer=str(base.tokenizer.decode([run.answer])).strip(),
        believed=run.answer in known if known else None,
        clean=run.clean,
        corrupted=corrupted,
        effects=dict(zip(KINDS, by_kind, strict=True)),
    )
