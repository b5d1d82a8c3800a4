"""The factors of r-ROME (arXiv 2202.05262, 2403.07175): keys, C⁻¹ keys and trained residuals of many edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vllm_edit.artefacts.compiled import Factors
from vllm_edit.artefacts.manifest import KeyGroup
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.solver import row_space, rows_alone
from vllm_edit.deltas.delta import LowRank
from vllm_edit.deltas.linear import linear_weight
from vllm_edit.edit import Edit
from vllm_edit.editing.closed_form_settings import ClosedFormSettings
from vllm_edit.editing.key_metric import Metric
from vllm_edit.editing.rome.endings import ending_rows
from vllm_edit.editing.rome.keys import Columns, FormKey, group_edits, make_columns, measure_inputs
from vllm_edit.editing.rome.name_keys import opening_forms, proper_names, same_ending
from vllm_edit.editing.rome.passes import Passes
from vllm_edit.editing.rome.prompt_forms import ended_rows, form_rows, forms_of, locality_rows, preservation_rows
from vllm_edit.editing.rome.residuals import Trained
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.rows import Row

_ORDINARY = 0.1
"""Fraction of the k̄ᵀC⁻¹k̄ of the edit's prompt below which a name's key counts as ordinary text and is ignored."""
MARGIN = 3.0
"""Default margin in nats, for a site without a margin from a sweep."""


@dataclass(frozen=True)
class Prepared:
    """Edits before training. rows: taught and preserved prompts. bare: [groups, d_in], keys of the bare prompts."""

    rows: tuple[Row, ...]
    columns: Columns
    bare: torch.Tensor

    @property
    def taught(self) -> list[Row]:
        return [row for row in self.rows if row.answer]

    def group_of(self, edit: int) -> int:
        """The key group of an edit."""
        return next(index for index, group in enumerate(self.columns.groups) if edit in group.edits)

    def groups_of(self, edits: Sequence[int]) -> list[int]:
        """The key groups of some edits, in ascending order."""
        chosen = set(edits)
        return [index for index, group in enumerate(self.columns.groups) if chosen & set(group.edits)]

    def only(self, edits: Sequence[int]) -> Prepared:
        """A selection of the edits, renumbered in that order. It must contain whole key groups.

        A preserved key that coincides with an edited key of another edit is omitted: one update cannot satisfy both.

        Raises:
            EditError: a key group has edits inside and outside the selection.
        """
        columns, number, groups = self.columns, {edit: place for place, edit in enumerate(edits)}, self.groups_of(edits)
        if any(not set(columns.groups[index].edits) <= number.keys() for index in groups):
            raise EditError("edits of one key group cannot be separated; select all edits of a subject together")
        place = {group: new for new, group in enumerate(groups)}
        own = columns.at(columns.satisfiable(groups))
        return Prepared(
            tuple(
                replace(row, edit=number[row.edit], group=place[row.group]) for row in self.rows if row.edit in number
            ),
            Columns(
                own.keys,
                own.whitened,
                tuple(column.model_copy(update={"group": place[column.group]}) for column in own.columns),
                tuple(KeyGroup(edits=tuple(number[edit] for edit in columns.groups[index].edits)) for index in groups),
            ),
            self.bare[groups],
        )


@dataclass(frozen=True)
class Part:
    """Edits that are solved jointly. groups: numbers of their key groups in `whole`. prepared: these edits alone.

    A: [groups of the part, d_in] float64, from their joint solve.
    """

    groups: list[int]
    prepared: Prepared
    A: torch.Tensor

    @classmethod
    def of(cls, whole: Prepared, edits: Sequence[int], damping: float) -> Part:
        """The part of these edits. edits: numbers in `whole`; they must make up whole key groups."""
        own = whole.only(edits)
        return cls(whole.groups_of(edits), own, row_space(own.columns.system(damping)))

    def with_residuals(self, trained: Trained) -> RomeFactors:
        """The part's factors. trained: the residuals of all groups of `whole`."""
        return RomeFactors(self.prepared, trained.only(self.groups), self.A)


@dataclass(frozen=True)
class RomeFactors:
    """Factors of edits with trained residuals. A: [groups, d_in] float64, from their joint solve."""

    prepared: Prepared
    trained: Trained
    A: torch.Tensor

    @property
    def factors(self) -> Factors:
        columns = self.prepared.columns
        return Factors(columns.keys, columns.whitened, self.trained.residuals)

    @property
    def update(self) -> LowRank:
        """The joint update of all edits, B [d_out, groups], A [groups, d_in], float64."""
        return LowRank(B=self.trained.residuals.double().T.contiguous(), A=self.A)


def prepare(base: Base, site: Site, metric: Metric, edits: Sequence[Edit], settings: ClosedFormSettings) -> Prepared:
    """Make the rows and measure the keys of the edits; group the edits and merge their keys into columns."""
    measured = measure(base, site, metric, edits, settings)
    rows, columns = list(measured.rows), measured.columns
    if settings.kl_factor:
        preserved = (preservation_rows(edit, i, base.tokenizer, site, settings) for i, edit in enumerate(edits))
        rows += [row for some in preserved for row in some]
    if settings.whole_words:
        rows += ending_rows(base, bare_rows(rows), settings.batch_tokens)
    group_of = {edit: index for index, group in enumerate(columns.groups) for edit in group.edits}
    return Prepared(tuple(replace(row, group=group_of[row.edit]) for row in rows), columns, measured.bare)


@dataclass(frozen=True)
class Measured:
    """The keys of edits at one module. rows: the rows of their forms. bare: [groups, d_in], keys of bare prompts."""

    rows: tuple[Row, ...]
    columns: Columns
    bare: torch.Tensor


def measure(
    base: Base,
    site: Site,
    metric: Metric,
    edits: Sequence[Edit],
    settings: ClosedFormSettings,
    groups: tuple[KeyGroup, ...] | None = None,
) -> Measured:
    """Measure the keys of the edits and merge them into columns.

    groups: the key groups; by default those of this module's keys (`group_edits`).
    """
    rows: list[Row] = []
    spans: list[tuple[int, str, list[float], range]] = []
    for index, edit in enumerate(edits):
        for form in forms_of(edit, base.tokenizer, site, settings.forms):
            made = form_rows(form, index, base.tokenizer, site.token)
            spans.append((index, form.name, form.weights, range(len(rows), len(rows) + len(made))))
            rows += made
    inputs = measure_inputs(base.model, site.module, rows, settings.batch_tokens)  # [rows, d_in]
    means = torch.stack([torch.tensor(weights) @ inputs[list(span)] for _, _, weights, span in spans])
    whitened = metric.whiten(means).float()
    form_keys = [
        FormKey(edit, name, key, white, inputs[span.start])
        for (edit, name, _, span), key, white in zip(spans, means, whitened, strict=True)
    ]
    form_keys += _preserved_keys(base, site, metric, edits, settings) if site.token == "last" else []
    plain = [key for key in form_keys if key.form == "plain"]
    if site.token == "subject_last":
        names = _name_keys(base, site, metric, edits, settings)
        form_keys += [key for key in names if key.strength > _ORDINARY * plain[key.edit].strength]
    groups = groups or group_edits(edits, plain, settings.group_cosine)
    columns = make_columns(groups, form_keys, settings.merge_cosine, settings.max_columns)
    return Measured(tuple(rows), columns, torch.stack([plain[group.edits[0]].bare for group in groups]))


def bare_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of bare prompts: the first row of each edit's plain form and chat form."""
    bare: dict[tuple[int, str], Row] = {}
    for row in rows:
        if row.form in ("plain", "chat"):
            bare.setdefault((row.edit, row.form), row)
    return list(bare.values())


def _preserved_keys(
    base: Base, site: Site, metric: Metric, edits: Sequence[Edit], settings: ClosedFormSettings
) -> list[FormKey]:
    """Preserved keys at the last token, which the update must not move.

    They are those of at most `most_kept` `tune` locality probes per edit, and of the last token of each edit's answer,
    so that the base's next token follows the answer. A site at the subject's token has none of these keys, because
    probes do not declare their subject.
    """
    rows = [row for i, edit in enumerate(edits) for row in locality_rows(edit, i, base.tokenizer)[: settings.most_kept]]
    if settings.ending:
        rows += [row for i, edit in enumerate(edits) for row in ended_rows(edit, i, base.tokenizer, site)]
    return _keys_of(base, site, metric, [(f"keep:{number}", 0.0, [row]) for number, row in enumerate(rows)], settings)


def _name_keys(
    base: Base, site: Site, metric: Metric, edits: Sequence[Edit], settings: ClosedFormSettings
) -> list[FormKey]:
    """Keys at the subject's token: edited keys of its name at the beginning of a text, and preserved mean keys of other
    names with the same ending. If the two coincide, the edited key has priority."""
    spans: list[tuple[str, float, list[Row]]] = []
    names = proper_names(base.tokenizer, settings.same_ending) if settings.same_ending else []
    for index, edit in enumerate(edits):
        for form in opening_forms(edit) if settings.opening else ():
            (row,) = form_rows(form, index, base.tokenizer, site.token)
            if row.position:
                spans.append((form.name, 1.0, [row]))
        for number, forms in enumerate(same_ending(edit, names)):
            rows = [row for form in forms for row in form_rows(form, index, base.tokenizer, site.token)]
            spans.append((f"keep:{number}", 0.0, rows))
    return _keys_of(base, site, metric, spans, settings)


def _keys_of(
    base: Base,
    site: Site,
    metric: Metric,
    spans: Sequence[tuple[str, float, Sequence[Row]]],
    settings: ClosedFormSettings,
) -> list[FormKey]:
    """The mean key of the rows in each span: (form, share, rows of one edit)."""
    if not spans:
        return []
    rows = [row for _, _, own in spans for row in own]
    inputs = measure_inputs(base.model, site.module, rows, settings.batch_tokens)  # [rows, d_in]
    means = torch.stack([part.mean(0) for part in torch.split(inputs, [len(own) for _, _, own in spans])])
    whitened = metric.whiten(means).float()
    return [
        FormKey(own[0].edit, form, key, white, key, share)
        for (form, share, own), key, white in zip(spans, means, whitened, strict=True)
    ]


def alone(prepared: Prepared, damping: float) -> torch.Tensor:
    """Each group's A, solved without the other groups, [groups, d_in] float64. Its residual is trained with this A."""
    return rows_alone(prepared.columns.system(damping))


def together(prepared: Prepared, parts: Sequence[Part]) -> torch.Tensor:
    """Each group's A from the joint solve of its part, [groups, d_in] float64."""
    A = torch.empty(len(prepared.columns.groups), prepared.columns.keys.shape[1], dtype=torch.float64)
    for part in parts:
        A[part.groups] = part.A
    return A


def passes_over(
    base: Base,
    site: Site,
    prepared: Prepared,
    A: torch.Tensor,
    settings: ClosedFormSettings,
    parts: Sequence[Part] | None = None,
) -> Passes:
    """Passes over the prepared rows, each under its own group's row of A [groups, d_in].

    With `parts`, whole rows are run, each under the served update of its part.
    """
    module = find_module(base.model, site.module)
    below, device = base.layout.layers[: site.layer], linear_weight(module).device
    return Passes(
        base.model,
        module,
        prepared.rows,
        A.float().to(device),
        below,
        settings.batch_tokens,
        whole=parts is not None,
        together=[part.groups for part in parts or ()],
    )


def damping_of(site: Site, settings: ClosedFormSettings) -> float:
    """The damping λ (`composition.solver`) of the settings, or of the site if the settings have none."""
    return site.damping if settings.damping is None else settings.damping


def margin_of(site: Site, settings: ClosedFormSettings) -> float:
    """The margin after the bare prompt in nats: from the settings, else from the site, else `MARGIN`."""
    own = site.margin if settings.margin is None else settings.margin
    return MARGIN if own is None else own


def offsets(base: Base, site: Site, prepared: Prepared, settings: RomeSettings) -> torch.Tensor:
    """Untrained part of δ [groups, d_out]: v0 − W k̄ = W (k_bare − k̄) for the rule "reference" (the bias cancels), 0 for
    the rule "shift"."""
    weight = linear_weight(find_module(base.model, site.module))
    if settings.residual_rule == "shift":
        return torch.zeros(len(prepared.columns.groups), weight.shape[0])
    columns = prepared.columns
    mean = torch.stack([columns.keys[columns.own(group)[0]] for group in range(len(columns.groups))])
    return ((prepared.bare - mean).to(weight.device) @ weight.detach().float().T).cpu()
