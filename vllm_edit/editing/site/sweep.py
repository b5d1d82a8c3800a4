"""The sweep that chooses a site, in rounds with fewer and fewer candidates and more edits, on a separate set of edits.

1. Screening: evenly spaced layers, both tokens, few edits, only the bare prompt, few long steps, and a second moment of
   less text. Deeper layers are skipped at the subject's token once edits there stop working.
2. Refining: layers next to the best ones, in the same way.
3. Finalists: the best candidates with contexts, as text and as chat turns, and the second moment of all the text.
4. Margin: the best finalist on the same edits, trained further to larger margins.
5. Damping λ: the same edits in one solve.

Published configurations edit at the subject's last token in early-middle layers, where large models store facts. Small
models move the subject's identity to the prompt's last token and recall the fact there (docs/methods.md). The sweep
therefore tries both tokens.

Candidates are compared by margins, because the shares of correct answers are often equal for few edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vllm_edit.artefacts.site import Context, Token
from vllm_edit.deltas.linear import linear_shape
from vllm_edit.edit import Edit
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.second_moment import second_moments
from vllm_edit.editing.site.contexts import generate_contexts
from vllm_edit.editing.site.sites import MadeSite, fixed_site, module_at
from vllm_edit.editing.site.trials import Alone, Measurement, Trials
from vllm_edit.errors import Unsolvable
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.hooks import find_module
from vllm_edit.models.lengths import check_edits
from vllm_edit.progress import Progress

T = TypeVar("T")

TOKENS: tuple[Token, ...] = ("subject_last", "last")
DAMPINGS = (0.0, 0.1)
MARGINS = (1.5, 3.0)
"""Tried margins after the bare prompt, in nats. Training for each margin continues from the previous margin."""
_LAYERS, _SCREENED, _REFINED = 6, 6, 2
_TIE, _NEAR = 0.02, 0.1
"""Score distances from the best candidate. Finalists are the best candidate, the second best within `_TIE`, and the
shallowest other within `_NEAR`. If the best finalist is at the subject's token, the shallowest there within `_TIE`
wins."""
_NEAR_MARGIN = 0.01
"""Score difference that counts as a tie between margins. The larger margin wins: it changes more wordings."""
_NEAR_DAMPING = 0.02
"""Score difference that counts as a tie between dampings. The larger λ wins: patches of a hundred edits need more
damping than the trials' twelve edits."""
_STEPS, _ROUNDS, _FIRST_STEPS, _FIRST_LENGTH = 40, 2, 10, 2.0
_FIRST_VECTORS = 3
"""Vectors of the screening's second moment, as a multiple of the module's inputs d_in."""
_FINAL_EDITS = 12
_FINAL_CONTEXTS = 2
"""Number of plain contexts and of chat contexts in which the finalists are tried, the bare one included."""
_ASKED = 12


@dataclass(frozen=True)
class _Finalist:
    """A site measured with single edits, and with all edits in one solve.

    together: None if the joint solve failed, or was skipped because the site's score is far below another's.
    """

    measured: Measurement
    alone: Alone
    together: Measurement | None

    @property
    def score(self) -> float:
        """The mean score of both, because patches contain one edit or many. A missing joint score counts as 0."""
        return (self.measured.score + (self.together.score if self.together else 0.0)) / 2


@dataclass(frozen=True)
class SiteChoice:
    """The chosen site and all measurements.

    table: single edits, finalists first and best first; then larger margins; then joint solves.
    """

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
    """Choose the layer and token where edits work best, alone and together, with their margin and damping λ.

    Args:
        edits: edits with `tune` paraphrase and locality probes; not those of a later evaluation.
        texts: texts on which C is measured.
        layers: candidates; default: 6 evenly spaced layers, and layers next to the best of them.
        margins: in nats, ascending.
        cache: folder for second moments.

    Raises:
        EditError: no edit has both a paraphrase and a locality probe for `tune`.
        UnsafeEdit: an edit is longer than the model's context.
        Unsolvable: the edits cannot be solved together with any of the dampings.
    """
    check_edits(base, edits, contexts or ())
    settings = settings or RomeSettings(
        on_missed="report", steps=_STEPS, rounds=_ROUNDS, forms=("plain", "chat"), kl_factor=0.0
    )
    depth = len(base.layout.layers)
    tried = list(layers) if layers is not None else _spread(depth, _LAYERS)
    for layer in tried:
        module_at(base, layer)
    if contexts is None:
        subjects, prompts = [edit.subject for edit in edits], [edit.prompt for edit in edits]
        contexts = generate_contexts(base, seed=seed, forbidden=subjects, asked=prompts[:_ASKED])

    def sites_at(some: Sequence[int], given: Sequence[Context], *, rough: bool = False) -> list[MadeSite]:
        modules = [module_at(base, layer) for layer in some]
        enough: dict[str, Any] = {"max_tokens": max_tokens}
        if rough:
            widest = max(linear_shape(find_module(base.model, module))[1] for module in modules)
            enough = {"max_tokens": _FIRST_VECTORS * widest, "minimum_ratio": _FIRST_VECTORS}
        moments = second_moments(base, modules, texts, cache=cache, progress=progress, **enough)
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
        trials = Trials.of(base, edits, _FINAL_EDITS, settings)
        hurried = settings.replace(
            forms=("plain",),
            steps=min(settings.steps, _FIRST_STEPS),
            learning_rate=_FIRST_LENGTH * settings.learning_rate,
            rounds=1,
        )
        first = trials.first(min(_SCREENED, len(edits)), hurried)
        bare = [Context()]
        roughly = sites_at(tried, bare, rough=True)
        found = _tried(first, [(made, token) for token in tokens for made in roughly], margins[0], progress)
        if layers is None and (beside := _beside(found[:_REFINED], tried)):
            refined = zip(
                sites_at([layer for layer, _ in beside], bare, rough=True), [token for _, token in beside], strict=True
            )
            found = sorted(found + _tried(first, list(refined), margins[0], progress), key=_best_first)
        best = [candidate.site for _, candidate in _finalists(found)]
        some = _some_of_each(contexts)
        placed = zip(sites_at([site.layer for site in best], some), [site.token for site in best], strict=True)
        finals = list[_Finalist]()
        for made, token in _counted(list(placed), "trying the best with contexts", progress):
            finals.append(_final(trials, first.at(made, token), margins[0], max(dampings), finals))
        finals = _ordered(finals)
        known = [final.together for final in finals if final.together]
        joint = _dampings(trials, finals[0].alone, margins[0], dampings, known, progress)
        strengths = [(finals[0].measured, finals[0].alone)]
        for margin in _counted(margins[1:], "choosing the margin", progress):
            start = strengths[-1][1]
            strengths.append(trials.single(start.made, margin, start))
        good = max(measured.score for measured, _ in strengths) - _NEAR_MARGIN
        strongest, alone = [candidate for candidate in strengths if candidate[0].score >= good][-1]
    site = alone.made.site.model_copy(
        update={"damping": _best_damping(joint), "margin": strongest.margin, "contexts": tuple(contexts)}
    )
    singles = [*(final.measured for final in finals), *(measured for measured, _ in found)]
    joints = [*joint, *(measured for measured in known if measured not in joint)]
    table = (*singles, *(measured for measured, _ in strengths[1:]), *joints)
    return SiteChoice(MadeSite(site, alone.made.moment), table)


def _finalists(found: Sequence[tuple[Measurement, MadeSite]]) -> list[tuple[Measurement, MadeSite]]:
    """The best candidate, the second best in a tie, and the shallowest of the others near the best. found: best first.

    Bare prompts, which the screening uses, favour deeper layers. With contexts and chat turns, shallower layers change
    as many wordings and fewer neighbours.
    """
    top = found[0][0].score
    best = found[: 2 if len(found) > 1 and found[1][0].score > top - _TIE else 1]
    others = [candidate for candidate in found[len(best) :] if candidate[0].score > top - _NEAR]
    return [*best, *sorted(others, key=lambda candidate: candidate[0].layer)[:1]]


def _ordered(finals: Sequence[_Finalist]) -> list[_Finalist]:
    """The finalists, best first. If the best is at the subject's token, the shallowest there within a tie comes first.

    Depth predicts an edit's effect on neighbours better than the few neighbours of the trials (docs/methods.md).
    """
    ordered = sorted(finals, key=lambda final: -final.score)
    best = ordered[0]
    tied = [final for final in ordered if final.measured.token == "subject_last" and final.score >= best.score - _TIE]
    if best not in tied:
        return ordered
    chosen = min(tied, key=lambda final: final.measured.layer)
    return [chosen, *(final for final in ordered if final is not chosen)]


def _final(trials: Trials, placed: MadeSite, margin: float, damping: float, others: Sequence[_Finalist]) -> _Finalist:
    """Measure the site as a finalist. The joint solve is skipped if the site's score is far below another's."""
    measured, alone = trials.single(placed, margin)
    if any(measured.score < other.measured.score - _NEAR for other in others):
        return _Finalist(measured, alone, None)
    try:
        return _Finalist(measured, alone, trials.joint(alone, margin, damping))
    except Unsolvable:
        return _Finalist(measured, alone, None)


def _tried(
    trials: Trials, candidates: Sequence[tuple[MadeSite, Token]], margin: float, progress: Progress | None
) -> list[tuple[Measurement, MadeSite]]:
    """Measure the candidates, given by ascending layer for each token. Returns them best first.

    Later tokens attend to the subject's token in the middle layers, so edits there have no effect above these layers.
    Deeper layers are therefore skipped after two layers with scores below half of the best.
    """
    found: list[tuple[Measurement, MadeSite]] = []
    scores: list[float] = []  # at the subject's token
    for made, token in _counted(candidates, "trying layers", progress):
        of_subject = token == "subject_last"
        if of_subject and len(scores) > 2 and max(scores[-2:]) < max(scores) / 2:
            continue
        placed = trials.at(made, token)
        measured, _ = trials.single(placed, margin)
        found.append((measured, placed))
        if of_subject:
            scores.append(measured.score)
    return sorted(found, key=_best_first)


def _dampings(
    trials: Trials,
    alone: Alone,
    margin: float,
    dampings: Sequence[float],
    known: Sequence[Measurement],
    progress: Progress | None,
) -> list[Measurement]:
    """Measure all edits in one solve with each λ for which the solve succeeds.

    known: earlier joint solves at this and other sites, which are not repeated.

    Raises:
        Unsolvable: the solve fails with the largest λ.
    """
    joint = list[Measurement]()
    for damping in _counted(dampings, "choosing the damping", progress):
        site = alone.made.site
        wanted = (site.layer, site.token, margin, damping)
        same = [old for old in known if (old.layer, old.token, old.margin, old.damping) == wanted]
        try:
            joint.append(same[0] if same else trials.joint(alone, margin, damping))
        except Unsolvable:  # a larger λ may succeed
            if damping == max(dampings):
                raise
    return joint


def _best_damping(joint: Sequence[Measurement]) -> float:
    """The largest λ whose score ties with the best score."""
    good = max(measured.score for measured in joint) - _NEAR_DAMPING
    return max(measured.damping for measured in joint if measured.score >= good)


def _beside(best: Sequence[tuple[Measurement, MadeSite]], tried: Sequence[int]) -> list[tuple[int, Token]]:
    """Untried (layer, token) halfway between each of the best layers and its neighbours in `tried`."""
    found: dict[tuple[int, Token], None] = {}  # ordered, without repetition
    for measured, _ in best:
        place = tried.index(measured.layer)
        for other in tried[max(place - 1, 0) : place + 2]:
            half = (measured.layer + other) // 2
            if half not in tried:
                found[half, measured.token] = None
    return list(found)


def _some_of_each(contexts: Sequence[Context]) -> list[Context]:
    """The first contexts of plain text and the first of chat turns."""
    plain, chat = (
        [context for context in contexts if context.chat is kind][:_FINAL_CONTEXTS] for kind in (False, True)
    )
    return plain + chat


def _best_first(candidate: tuple[Measurement, object]) -> float:
    return -candidate[0].score


def _counted(items: Sequence[T], what: str, progress: Progress | None) -> Iterator[T]:
    """Yield the items, with a progress report before each."""
    for number, item in enumerate(items):
        if progress:
            progress(what, number, len(items))
        yield item
    if progress:
        progress(what, len(items), len(items))


def _spread(depth: int, most: int) -> list[int]:
    """All layers, or `most` evenly spaced layers, including the last."""
    if depth <= most:
        return list(range(depth))
    return sorted({round(step * (depth - 1) / (most - 1)) for step in range(most)})
