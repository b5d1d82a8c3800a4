"""The sweep that chooses a site: token × layer by single edits, then λ by a joint solve, on a seeded set of its own.

Every candidate is tried on the first few edits with half the steps and a third of the contexts, the best of them on all
edits with all steps and contexts.

Published configurations edit at the subject's last token in early-middle layers, where large models keep facts; small
models carry the subject's identity to the prompt's last token and recall there (docs/methods.md). So both are measured.

Nothing is scored that was trained on: half of each edit's `tune` paraphrases become forms of the edit and half of its
`tune` locality probes are kept, the others are the measure. Scores are those of greedy decoding: an answer counts if it
is what greedy decoding from the prompt gives, token for token.
"""

from __future__ import annotations

import statistics as numbers
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vllm_edit.deltas.delta import LowRank
from vllm_edit.editing.contexts import generate_contexts
from vllm_edit.editing.forms import form_rows, forms_of, probe_row
from vllm_edit.editing.rome_factors import Prepared, prepare
from vllm_edit.editing.rome_rounds import Solved, solve_parts
from vllm_edit.editing.served import served_leads, weight_norm
from vllm_edit.editing.settings import Progress, RomeSettings
from vllm_edit.editing.sites import MadeSite, fixed_site, module_at, residual_scale
from vllm_edit.editing.statistics import second_moments
from vllm_edit.errors import EditError, Unsolvable
from vllm_edit.models.base import Base, unchanged
from vllm_edit.models.hooks import frozen
from vllm_edit.models.lengths import check_edits
from vllm_edit.models.rows import Row, greedy, leads
from vllm_edit.patch import LOCALITY_KINDS, Edit
from vllm_edit.store.site import Context, Token

TOKENS: tuple[Token, ...] = ("subject_last", "last")
DAMPINGS = (0.0, 0.05, 0.1)
_FIRST_EDITS, _FINALISTS, _STEPS = 8, 4, 40
_FIRST_CONTEXTS = 3  # every third: of the generated ones the bare prompt, one prefix, the bare chat turn
_MOST_LAYERS = 12
_LOCALITY_TOKENS = 3


@dataclass(frozen=True)
class Measurement:
    """What one candidate reached on the sweep's edits. Shares between 0 and 1; `joint`: all edits in one solve."""

    token: Token
    layer: int
    damping: float
    joint: bool
    reliability: float
    paraphrase: float
    locality: float
    locality_subject: float | None  # None where no edit has a probe of it
    norm: float  # ‖ΔW‖/‖W‖: mean of the single edits', or the joint update's
    steps: float  # mean

    @property
    def score(self) -> float:
        """Harmonic mean of the shares (CounterFact's S), less 0.02·‖ΔW‖/‖W‖: near ties go to the smaller update.

        Locality on the same subject counts by itself: the other probes of locality outnumber it.
        """
        shares = [self.reliability, self.paraphrase, self.locality]
        shares += [] if self.locality_subject is None else [self.locality_subject]
        return numbers.harmonic_mean(shares) - 0.02 * min(self.norm, 5.0)

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"score": round(self.score, 4)}


@dataclass(frozen=True)
class SiteChoice:
    """The chosen site and everything that was measured on the way, best single-edit candidate first."""

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
    settings: RomeSettings | None = None,
    max_rank: int | None = None,
    slots: int = 16,
    seed: int = 0,
    cache: Path | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> SiteChoice:
    """The site where single edits work best, with the λ with which they work best together.

    edits: a set of its own, with `tune` paraphrase and locality probes; never edits that are judged later.
    texts: what C is measured on.  layers: candidates; default all, or 12 evenly spaced.  cache: folder for moments.

    Raises:
        EditError: the edits have no `tune` probes to measure by.
        UnsafeEdit: an edit is longer than the model reads.
        Unsolvable: the edits cannot be solved together with any of the dampings.
    """
    check_edits(base, edits, contexts or ())
    settings = settings or RomeSettings(on_missed="report", steps=_STEPS)
    depth = len(base.layout.layers)
    layers = list(layers) if layers is not None else _spread(depth, _MOST_LAYERS)
    if contexts is None:
        subjects, prompts = [edit.subject for edit in edits], [edit.prompt for edit in edits]
        contexts = generate_contexts(base, seed=seed, forbidden=subjects, asked=prompts)
    with unchanged(base):
        sweep = _Sweep.of(base, edits, settings)
        hurried = replace(settings, steps=-(-settings.steps // 2))
        first = _Sweep.of(base, edits[:_FIRST_EDITS], hurried)
        found: list[tuple[Measurement, MadeSite, Alone]] = []
        total = len(layers) * len(tokens) + min(_FINALISTS, len(layers) * len(tokens))
        modules = [module_at(base, layer) for layer in layers]
        moments = second_moments(base, modules, texts, cache=cache, max_tokens=max_tokens, progress=progress)
        for layer, moment in zip(layers, moments, strict=True):
            made = fixed_site(
                base,
                texts,
                layer=layer,
                token=tokens[0],
                contexts=contexts[::_FIRST_CONTEXTS],
                damping=0.0,
                max_rank=max_rank,
                slots=slots,
                seed=seed,
                moment=moment,
                residual_scale=1.0,
            )
            for token in tokens:
                found.append(first.single(made, token))
                if progress:
                    progress("choosing the site", len(found), total)
        found.sort(key=lambda candidate: -candidate[0].score)
        for place, (_, made, _) in enumerate(found[:_FINALISTS]):
            complete = made.site.model_copy(update={"contexts": tuple(contexts)})
            found[place] = sweep.single(MadeSite(complete, made.moment), made.site.token)
            if progress:
                progress("choosing the site", total - min(_FINALISTS, len(found)) + place + 1, total)
        found[:_FINALISTS] = sorted(found[:_FINALISTS], key=lambda candidate: -candidate[0].score)
        _, made, factors = found[0]
        joint = list[Measurement]()
        for place, damping in enumerate(dampings):
            try:
                joint.append(sweep.joint(made, factors, damping))
            except Unsolvable:  # a larger λ may do
                if damping == max(dampings):
                    raise
            if progress:
                progress("choosing the damping", place + 1, len(dampings))
    best = max(joint, key=lambda measured: (measured.score, -measured.damping))
    chosen = MadeSite(made.site.model_copy(update={"damping": best.damping}), made.moment)
    return SiteChoice(chosen, (*(measured for measured, *_ in found), *joint))


@dataclass(frozen=True)
class Alone:
    """The sweep's edits, each key group solved by itself."""

    prepared: Prepared
    solved: tuple[Solved, ...]


@dataclass(frozen=True)
class _Sweep:
    """The sweep's edits (with the probes that are trained on) and the rows that measure them, scored on the base."""

    base: Base
    edits: tuple[Edit, ...]
    paraphrases: tuple[Row, ...]
    localities: tuple[Row, ...]
    settings: RomeSettings

    @classmethod
    def of(cls, base: Base, edits: Sequence[Edit], settings: RomeSettings) -> _Sweep:
        trained, paraphrases, localities = [], list[Row](), list[Row]()
        has_chat = bool(getattr(base.tokenizer, "chat_template", None))
        for index, edit in enumerate(edits):
            told = [probe for probe in edit.probes if probe.split == "tune" and (has_chat or not probe.chat)]
            wordings = [probe for probe in told if probe.kind == "paraphrase"]
            keeping = [probe for probe in told if probe.kind in LOCALITY_KINDS]
            # Every other one: the kinds stand one after the other.
            used = (*wordings[1::2], *keeping[1::2])
            trained.append(edit.model_copy(update={"probes": used}))
            for probe in wordings[::2]:
                target = probe.target or edit.target_new
                paraphrases.append(probe_row(probe, target, index, index, base.tokenizer))
            for probe in keeping[::2]:
                localities.append(probe_row(probe, probe.target, index, index, base.tokenizer))
        if not paraphrases or not localities:
            raise EditError(
                "the sweep needs edits with `tune` paraphrase and locality probes; "
                f"got {len(edits)} edits with {len(paraphrases)} and {len(localities)} of them to measure by"
            )
        with frozen(base.model):
            kept_rows = _as_base_answers(base, localities, settings.batch_tokens)
        return cls(base, tuple(trained), tuple(paraphrases), tuple(kept_rows), settings)

    def single(self, made: MadeSite, token: Token) -> tuple[Measurement, MadeSite, Alone]:
        """Every edit alone (each row under its own edit's update) at `token` of the made site's layer."""
        site = made.site.model_copy(update={"token": token})
        bare = [
            row
            for index, edit in enumerate(self.edits)
            for form in forms_of(edit, self.base.tokenizer, site, ("plain",))
            for row in form_rows(form, index, self.base.tokenizer, token)[:1]
        ]
        scale = residual_scale(self.base, site.layer, bare, self.settings.batch_tokens)
        made = MadeSite(site.model_copy(update={"residual_scale": scale}), made.moment)
        settings = replace(self.settings, damping=0.0)
        prepared = prepare(self.base, made.site, made.moment, self.edits, settings)
        groups = prepared.columns.groups
        solved = solve_parts(self.base, made.site, prepared, self.edits, [group.edits for group in groups], settings)
        updates = [one.update for one in solved]
        measured = Measurement(
            token=token,
            layer=made.site.layer,
            damping=0.0,
            joint=False,
            norm=numbers.fmean(float(one.norm()) for one in updates) / weight_norm(self.base, made.site),
            steps=numbers.fmean(health.steps for one in solved for health in one.health),
            **self._shares(prepared, lambda rows: self._leads(made, rows, updates, [row.group for row in rows])),
        )
        return measured, made, Alone(prepared, tuple(solved))

    def joint(self, made: MadeSite, alone: Alone, damping: float) -> Measurement:
        """All edits in one solve with `damping`; each residual is trained on from the undamped one's."""
        settings = replace(self.settings, damping=damping)
        start = torch.cat([one.computed.factors.residuals for one in alone.solved]) * (1 + damping)
        (solved,) = solve_parts(
            self.base, made.site, alone.prepared, self.edits, [range(len(self.edits))], settings, start=start
        )
        update = solved.update
        return Measurement(
            token=made.site.token,
            layer=made.site.layer,
            damping=damping,
            joint=True,
            norm=update.norm() / weight_norm(self.base, made.site),
            steps=numbers.fmean(health.steps for health in solved.health),
            **self._shares(alone.prepared, lambda rows: self._leads(made, rows, [update], [0] * len(rows))),
        )

    def _leads(
        self, made: MadeSite, rows: Sequence[Row], updates: Sequence[LowRank], chosen: Sequence[int]
    ) -> torch.Tensor:
        return served_leads(self.base, made.site, rows, updates, chosen, self.settings.batch_tokens)

    def _shares(self, prepared: Prepared, score: Callable[[Sequence[Row]], torch.Tensor]) -> dict[str, Any]:
        """The shares; `score` gives each row's lead, which is positive if greedy decoding gives its answer."""
        taught = prepared.taught
        # An edit's first row is the bare prompt: the plain form comes first, and its bare context.
        bare = [next(row for row in taught if row.edit == index) for index in range(len(self.edits))]
        subject = [row for row in self.localities if row.form == "locality_subject"]
        other = [row for row in self.localities if row.form != "locality_subject"]
        measures = {"reliability": bare, "paraphrase": self.paraphrases, "locality": other or subject}
        measures |= {"locality_subject": subject} if other and subject else {}
        grouped = {
            name: [replace(row, group=prepared.group_of(row.edit)) for row in rows] for name, rows in measures.items()
        }
        shares = {name: float((score(rows) > 0).float().mean()) for name, rows in grouped.items()}
        return {"locality_subject": None} | shares


def _as_base_answers(base: Base, rows: Sequence[Row], tokens: int) -> list[Row]:
    """The rows with the base's own answers: the expected one where the base gives it, else its first greedy tokens."""
    known = leads(base.model, rows, tokens)
    written = greedy(base.model, rows, _LOCALITY_TOKENS, tokens)
    return [
        row if row.answer and lead > 0 else own for row, lead, own in zip(rows, known.tolist(), written, strict=True)
    ]


def _spread(depth: int, most: int) -> list[int]:
    """All layers, or `most` of them evenly spaced, the last one included."""
    if depth <= most:
        return list(range(depth))
    return sorted({round(step * (depth - 1) / (most - 1)) for step in range(most)})
