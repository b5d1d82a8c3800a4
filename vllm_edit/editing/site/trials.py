"""Trials of a site: edits are compiled at it and measured on probes that are not trained on."""

from __future__ import annotations

import statistics as numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch

from vllm_edit.artefacts.site import Token
from vllm_edit.deltas.delta import LowRank
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.rome.factors import Prepared, prepare
from vllm_edit.editing.rome.prompt_forms import form_rows, forms_of, probe_row
from vllm_edit.editing.rome.rounds import Solved, solve_parts
from vllm_edit.editing.rome.served import served_leads, weight_norm
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.site.sites import MadeSite, residual_scale
from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONObject
from vllm_edit.models.base import Base
from vllm_edit.models.fast_products import fast_products
from vllm_edit.models.hooks import frozen
from vllm_edit.models.rows import Row, greedy, leads

_LOCALITY_TOKENS = 3
_SCALE = 3.0
"""Scale in nats of a paraphrase's lead, so that candidates differ even if all paraphrases miss by a few nats."""
_IN_CHAT = "paraphrase in chat"


@dataclass(frozen=True)
class Measurement:
    """Results of one candidate on some of the sweep's edits. joint: all of them are in one solve.

    reliability, paraphrase, locality, locality_subject: share of expected answers that greedy decoding gives.

    Candidates are compared by leads in nats, which differ even if these shares are equal. reached: mean σ(lead) of the
    bare prompts. reworded: mean σ(lead / 3) of the paraphrases. stayed: mean of σ(lead) / σ(lead in the base), each at
    most 1, of the locality probes. All three are between 0 and 1.
    """

    token: Token
    layer: int
    damping: float
    margin: float
    joint: bool
    edits: int
    reliability: float
    paraphrase: float
    locality: float
    locality_subject: float | None  # None if only one kind of locality probe is present
    reached: float
    reworded: float
    stayed: float
    norm: float  # ‖ΔW‖/‖W‖: mean over the single edits, or that of the joint update
    steps: float  # mean

    @property
    def score(self) -> float:
        """The harmonic mean of `reached`, `reworded` and `stayed`³, minus 0.02·‖ΔW‖/‖W‖.

        Locality has more weight than paraphrases: a patch can declare a missed paraphrase, but a changed neighbour goes
        unnoticed. The last term prefers the smaller update in a near tie.
        """
        return numbers.harmonic_mean([self.reached, self.reworded, self.stayed**3]) - 0.02 * min(self.norm, 5.0)

    def as_record(self) -> JSONObject:
        return asdict(self) | {"score": round(self.score, 4)}


@dataclass(frozen=True)
class Alone:
    """Edits solved at a site, each key group alone."""

    made: MadeSite
    prepared: Prepared
    solved: tuple[Solved, ...]

    @property
    def residuals(self) -> torch.Tensor:
        """[groups, d_out]."""
        return torch.cat([part.computed.factors.residuals for part in self.solved])


@dataclass(frozen=True)
class Trials:
    """Edits with the probes to train on, and the rows that measure them, scored on the base.

    An edit's `tune` locality probes only measure: few patches declare such probes, so a site must preserve neighbours
    without them. Its `tune` paraphrases also measure. If the settings include the form `tune`, half of the paraphrases
    are trained on instead.
    """

    base: Base
    edits: tuple[Edit, ...]
    paraphrases: tuple[Row, ...]
    localities: tuple[Row, ...]
    before: tuple[float, ...]  # the lead in the base for each locality row, in nats
    settings: RomeSettings

    @classmethod
    def of(cls, base: Base, edits: Sequence[Edit], count: int, settings: RomeSettings) -> Trials:
        """The trials of `count` edits, those first that have both kinds of measuring probes.

        Raises:
            EditError: no edit has both kinds.
        """
        has_chat = bool(getattr(base.tokenizer, "chat_template", None))
        measuring = [_measuring(edit, has_chat) for edit in edits]
        if not any(wordings and keeping for wordings, keeping in measuring):
            raise EditError(
                "the sweep needs edits with `tune` paraphrase and locality probes, both at one edit; got "
                f"{len(edits)} edits, {sum(bool(some) for some, _ in measuring)} with paraphrases and "
                f"{sum(bool(some) for _, some in measuring)} with locality probes: add a probe of the missing kind"
            )
        order = sorted(range(len(edits)), key=lambda number: not all(measuring[number]))[:count]
        trained, paraphrases, localities = [], list[Row](), list[Row]()
        for index, number in enumerate(order):
            edit, (wordings, keeping) = edits[number], measuring[number]
            taught = wordings[1::2] if "tune" in settings.forms else []
            trained.append(edit.model_copy(update={"probes": tuple(taught)}))
            for probe in (probe for probe in wordings if probe not in taught):
                target = probe.target or edit.target_new
                row = probe_row(probe, target, index, index, base.tokenizer)
                paraphrases.append(replace(row, form=_IN_CHAT) if probe.chat else row)
            for probe in keeping:
                localities.append(probe_row(probe, probe.target, index, index, base.tokenizer))
        with frozen(base.model), _roughly(base, settings):
            answered = _as_base_answers(base, localities, settings.batch_tokens)
            before = leads(base.model, answered, settings.batch_tokens)
        return cls(base, tuple(trained), tuple(paraphrases), tuple(answered), tuple(before.tolist()), settings)

    def first(self, count: int, settings: RomeSettings) -> Trials:
        """The trials of the first `count` edits, with other settings.

        Without the chat form, chat paraphrases are omitted: at every site, edits trained on plain text alone have
        little effect in chat turns.
        """
        places = [place for place, row in enumerate(self.localities) if row.edit < count]
        reworded = [row for row in self.paraphrases if row.edit < count]
        plain = [row for row in reworded if row.form != _IN_CHAT]
        return Trials(
            self.base,
            self.edits[:count],
            tuple(plain if plain and "chat" not in settings.forms else reworded),
            tuple(self.localities[place] for place in places),
            tuple(self.before[place] for place in places),
            settings,
        )

    def at(self, made: MadeSite, token: Token) -> MadeSite:
        """The site at `token`, with the scale of the residual stream measured there."""
        site = made.site.model_copy(update={"token": token})
        bare = [
            row
            for index, edit in enumerate(self.edits)
            for form in forms_of(edit, self.base.tokenizer, site, ("plain",))
            for row in form_rows(form, index, self.base.tokenizer, token)[:1]
        ]
        scale = residual_scale(self.base, site.layer, bare, self.settings.batch_tokens)
        return MadeSite(site.model_copy(update={"residual_scale": scale}), made.moment)

    def single(self, made: MadeSite, margin: float, start: Alone | None = None) -> tuple[Measurement, Alone]:
        """Measure every key group alone. start: the same edits at the same site, from which training continues."""
        settings = self.settings.replace(damping=0.0, margin=margin)
        prepared = start.prepared if start else prepare(self.base, made.site, made.moment, self.edits, settings)
        groups = [group.edits for group in prepared.columns.groups]
        solved = solve_parts(
            self.base,
            made.site,
            prepared,
            self.edits,
            groups,
            settings,
            start=start.residuals if start else None,
            exact=False,
        )
        updates = [part.update for part in solved]
        norm = numbers.fmean(float(update.norm()) for update in updates) / weight_norm(self.base, made.site)
        steps = numbers.fmean(health.steps for part in solved for health in part.health)
        measured = self._measured(made, 0.0, margin, prepared, updates, range(len(groups)), norm, steps)
        return measured, Alone(made, prepared, tuple(solved))

    def joint(self, alone: Alone, margin: float, damping: float) -> Measurement:
        """Measure all edits in one solve with `damping`; training continues from the scaled residuals of `alone`."""
        made, prepared = alone.made, alone.prepared
        settings = self.settings.replace(damping=damping, margin=margin)
        start = alone.residuals * (1 + damping)
        everything = [range(len(self.edits))]
        (solved,) = solve_parts(
            self.base, made.site, prepared, self.edits, everything, settings, start=start, exact=False
        )
        norm = float(solved.update.norm()) / weight_norm(self.base, made.site)
        steps = numbers.fmean(health.steps for health in solved.health)
        number = [0] * len(prepared.columns.groups)
        return self._measured(made, damping, margin, prepared, [solved.update], number, norm, steps, joint=True)

    def _measured(
        self,
        made: MadeSite,
        damping: float,
        margin: float,
        prepared: Prepared,
        updates: Sequence[LowRank],
        update_of: Sequence[int],
        norm: float,
        steps: float,
        joint: bool = False,
    ) -> Measurement:
        """Measure the updates on all rows. update_of: for each key group, the index of its update."""

        def lead(rows: Sequence[Row]) -> torch.Tensor:
            chosen = [update_of[prepared.group_of(row.edit)] for row in rows]
            return served_leads(self.base, made.site, rows, updates, chosen, self.settings.batch_tokens)

        # An edit's first row is the bare prompt: the plain form comes first, and in it the bare context.
        bare = [next(row for row in prepared.taught if row.edit == index) for index in range(len(self.edits))]
        with _roughly(self.base, self.settings):
            reached, reworded, answered = lead(bare), lead(self.paraphrases), lead(self.localities)
        stays = (answered.sigmoid() / torch.tensor(self.before).sigmoid()).clamp_max(1.0)
        of_subject = torch.tensor([row.form == "locality_subject" for row in self.localities])
        other = ~of_subject if bool((~of_subject).any()) else of_subject
        both = bool(of_subject.any()) and bool((~of_subject).any())
        return Measurement(
            token=made.site.token,
            layer=made.site.layer,
            damping=damping,
            margin=margin,
            joint=joint,
            edits=len(self.edits),
            reliability=_share(reached),
            paraphrase=_share(reworded),
            locality=_share(answered[other]),
            locality_subject=_share(answered[of_subject]) if both else None,
            reached=float(reached.sigmoid().mean()),
            reworded=float((reworded / _SCALE).sigmoid().mean()),
            stayed=float(stays.mean()),
            norm=norm,
            steps=steps,
        )


@contextmanager
def _roughly(base: Base, settings: RomeSettings) -> Iterator[None]:
    """Within the context, the whole model multiplies in bfloat16 if the settings and the processor allow it. Trials
    only need scores."""
    with fast_products([base.model] if settings.fast_products else []):
        yield


def _measuring(edit: Edit, has_chat: bool) -> tuple[list[Probe], list[Probe]]:
    """The edit's `tune` paraphrases and `tune` locality probes that the model can be asked."""
    probes = [probe for probe in edit.probes if probe.split == "tune" and (has_chat or not probe.chat)]
    return (
        [probe for probe in probes if probe.kind == "paraphrase"],
        [probe for probe in probes if probe.keeps],
    )


def _share(found: torch.Tensor) -> float:
    """The share of positive leads, that is, of answers that greedy decoding gives token for token."""
    return float((found > 0).float().mean())


def _as_base_answers(base: Base, rows: Sequence[Row], tokens: int) -> list[Row]:
    """The rows with the base's own answers: the expected answer if the base gives it, else its first greedy tokens."""
    known = leads(base.model, rows, tokens)
    written = greedy(base.model, rows, _LOCALITY_TOKENS, tokens)
    return [
        row if row.answer and lead > 0 else own for row, lead, own in zip(rows, known.tolist(), written, strict=True)
    ]
