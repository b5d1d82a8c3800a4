"""The sweep that chooses a site, in rounds of fewer candidates and more edits, on a seeded set of edits of its own.

1. Screening: some layers, evenly spaced, at both tokens, on a few edits, with the bare prompt alone and few steps.
2. Refining: the layers beside the best ones, in the same way.
3. Finalists: the best candidates on twice as many edits, with every form and context.
4. The margin: the finalist on the same edits, trained on to larger margins.
5. The damping λ: these edits in one solve.

Published configurations edit at the subject's last token in early-middle layers, where large models keep facts. Small
models carry the subject's identity to the prompt's last token and recall there (docs/methods.md). So both are tried.

Candidates are compared by margins and not by shares alone: on a few edits many of them have equal shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vllm_edit.editing.contexts import generate_contexts
from vllm_edit.editing.settings import Progress, RomeSettings
from vllm_edit.editing.sites import MadeSite, fixed_site, module_at
from vllm_edit.editing.statistics import second_moments
from vllm_edit.editing.trials import Alone, Measurement, Trials
from vllm_edit.errors import Unsolvable
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.lengths import check_edits
from vllm_edit.patch import Edit
from vllm_edit.store.site import Context, Token

T = TypeVar("T")

TOKENS: tuple[Token, ...] = ("subject_last", "last")
DAMPINGS = (0.0, 0.05, 0.1)
MARGINS = (1.0, 2.0, 3.0, 4.5)
"""Nats by which the target leads after the bare prompt. All are reached by training on from the one before."""
_LAYERS, _SCREENED, _REFINED, _FINALISTS = 8, 6, 2, 2
_STEPS, _FIRST_STEPS = 40, 16
_FINAL_EDITS = 12
_ASKED = 12


@dataclass(frozen=True)
class SiteChoice:
    """The chosen site and every measurement on the way: single edits first, best first; then larger margins; then λ."""

    made: MadeSite
    table: tuple[Measurement, ...]


def choose_site(
    base: Base,
    edits: Sequence[Edit],
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    tokens: Sequence[Token] = TOKENS,
    contexts: Sequence[Context] | None = None,
    dampings: Sequence[float] = DAMPINGS,
    margins: Sequence[float] = MARGINS,
    settings: RomeSettings | None = None,
    max_rank: int | None = None,
    slots: int = 16,
    seed: int = 0,
    cache: Path | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> SiteChoice:
    """The site where single edits work best, with the margin and the λ with which they do.

    Args:
        edits: a set of its own, with `tune` paraphrase and locality probes; never edits that are judged later.
        texts: what C is measured on.
        layers: candidates; default 8 evenly spaced ones, and those beside the best of them.
        margins: ascending.
        cache: folder for moments.

    Raises:
        EditError: the edits have no `tune` probes to measure by.
        UnsafeEdit: an edit is longer than the model reads.
        Unsolvable: the edits cannot be solved together with any of the dampings.
    """
    check_edits(base, edits, contexts or ())
    settings = settings or RomeSettings(on_missed="report", steps=_STEPS)
    depth = len(base.layout.layers)
    tried = list(layers) if layers is not None else _spread(depth, _LAYERS)
    for layer in tried:
        module_at(base, layer)
    if contexts is None:
        subjects, prompts = [edit.subject for edit in edits], [edit.prompt for edit in edits]
        contexts = generate_contexts(base, seed=seed, forbidden=subjects, asked=prompts[:_ASKED])

    def sites_at(some: Sequence[int], given: Sequence[Context]) -> list[MadeSite]:
        modules = [module_at(base, layer) for layer in some]
        moments = second_moments(base, modules, texts, cache=cache, max_tokens=max_tokens, progress=progress)
        return [
            fixed_site(
                base,
                texts,
                layer=layer,
                contexts=given,
                damping=0.0,
                max_rank=max_rank,
                slots=slots,
                seed=seed,
                moment=moment,
                residual_scale=1.0,
            )
            for layer, moment in zip(some, moments, strict=True)
        ]

    with unchanged(base):
        trials = Trials.of(base, edits[:_FINAL_EDITS], settings)
        hurried = replace(settings, forms=("plain",), steps=min(settings.steps, _FIRST_STEPS), rounds=1)
        first = trials.first(min(_SCREENED, len(edits)), hurried)
        bare = [Context()]
        found = _tried(
            first, [(made, token) for made in sites_at(tried, bare) for token in tokens], margins[0], progress
        )
        if layers is None and (beside := _beside(found[:_REFINED], tried)):
            refined = zip(sites_at([layer for layer, _ in beside], bare), [token for _, token in beside], strict=True)
            found = sorted(found + _tried(first, list(refined), margins[0], progress), key=_best_first)
        finals = [
            trials.single(_with_contexts(made, contexts), margins[0])
            for _, made in _counted(found[:_FINALISTS], "trying the best with more edits", progress)
        ]
        finals.sort(key=_best_first)
        strengths = [finals[0]]
        for margin in _counted(margins[1:], "choosing the margin", progress):
            start = strengths[-1][1]
            strengths.append(trials.single(start.made, margin, start))
        strongest, alone = max(strengths, key=lambda final: final[0].score)
        joint = _dampings(trials, alone, strongest.margin, dampings, progress)
    best = max(joint, key=lambda measured: (measured.score, -measured.damping))
    site = alone.made.site.model_copy(update={"damping": best.damping, "margin": strongest.margin})
    singles = [*(measured for measured, _ in finals), *(measured for measured, _ in found)]
    table = (*singles, *(measured for measured, _ in strengths[1:]), *joint)
    return SiteChoice(MadeSite(site, alone.made.moment), table)


def _tried(
    trials: Trials, candidates: Sequence[tuple[MadeSite, Token]], margin: float, progress: Progress | None
) -> list[tuple[Measurement, MadeSite]]:
    """Every site at its token, best first."""
    found = []
    for made, token in _counted(candidates, "trying layers", progress):
        placed = trials.at(made, token)
        found.append((trials.single(placed, margin)[0], placed))
    return sorted(found, key=_best_first)


def _dampings(
    trials: Trials, alone: Alone, margin: float, dampings: Sequence[float], progress: Progress | None
) -> list[Measurement]:
    """All edits in one solve with each λ with which they can be solved.

    Raises:
        Unsolvable: there is none.
    """
    joint = list[Measurement]()
    for damping in _counted(dampings, "choosing the damping", progress):
        try:
            joint.append(trials.joint(alone, margin, damping))
        except Unsolvable:  # a larger λ may do
            if damping == max(dampings):
                raise
    return joint


def _beside(best: Sequence[tuple[Measurement, MadeSite]], tried: Sequence[int]) -> list[tuple[int, Token]]:
    """Untried (layer, token) half-way between each of the best layers and its neighbours among those tried."""
    found: dict[tuple[int, Token], None] = {}  # ordered, without repetition
    for measured, _ in best:
        place = tried.index(measured.layer)
        for other in tried[max(place - 1, 0) : place + 2]:
            half = (measured.layer + other) // 2
            if half not in tried:
                found[half, measured.token] = None
    return list(found)


def _with_contexts(made: MadeSite, contexts: Sequence[Context]) -> MadeSite:
    return MadeSite(made.site.model_copy(update={"contexts": tuple(contexts)}), made.moment)


def _best_first(candidate: tuple[Measurement, object]) -> float:
    return -candidate[0].score


def _counted(items: Sequence[T], what: str, progress: Progress | None) -> Iterator[T]:
    """The items, with progress before each."""
    for number, item in enumerate(items):
        if progress:
            progress(what, number, len(items))
        yield item
    if progress:
        progress(what, len(items), len(items))


def _spread(depth: int, most: int) -> list[int]:
    """All layers, or `most` of them evenly spaced, the last one included."""
    if depth <= most:
        return list(range(depth))
    return sorted({round(step * (depth - 1) / (most - 1)) for step in range(most)})
