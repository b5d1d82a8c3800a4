"""Keys: the module's input at the site's token, averaged over contexts, grouped by subject, merged into columns.

Contexts are weighted as in MEMIT (arXiv 2210.07229, reference code): the bare prompt has weight one half, and the
prefixed prompts share the other half. In ROME's plain mean, the sampled prefixes would outweigh the prompt itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vllm_edit.artefacts.manifest import Column, KeyGroup
from vllm_edit.composition.solver import ROOM, System, interference, satisfiable
from vllm_edit.edit import Edit
from vllm_edit.models.hooks import inputs_of, outputs_of
from vllm_edit.models.rows import Batch, Row, batches
from vllm_edit.text.spelling import written

if TYPE_CHECKING:
    from vllm_edit.models.causal_lm import CausalLM


@dataclass(frozen=True)
class FormKey:
    """The key of one form of one edit. key, whitened: k̄ and C⁻¹k̄, [d_in] float32; bare: the bare prompt's key.

    share: 0 for a preserved key, which the update must not move, else 1.
    """

    edit: int
    form: str
    key: torch.Tensor
    whitened: torch.Tensor
    bare: torch.Tensor
    share: float = 1.0

    @property
    def strength(self) -> float:
        """The leverage k̄ᵀC⁻¹k̄; small for a key that resembles those of ordinary text."""
        return float(self.key.double() @ self.whitened.double())


@dataclass(frozen=True)
class Columns:
    """The columns of a set of edits and their key groups. keys, whitened: K and C⁻¹K, [n, d_in] float32."""

    keys: torch.Tensor
    whitened: torch.Tensor
    columns: tuple[Column, ...]
    groups: tuple[KeyGroup, ...]

    @property
    def group_of(self) -> list[int]:
        return [column.group for column in self.columns]

    @property
    def shares(self) -> list[float]:
        return [column.share for column in self.columns]

    def at(self, places: Sequence[int]) -> Columns:
        """Only the columns at these indices."""
        chosen = list(places)
        return Columns(
            self.keys[chosen], self.whitened[chosen], tuple(self.columns[place] for place in chosen), self.groups
        )

    def own(self, group: int) -> list[int]:
        """Indices of a group's columns; the first column belongs to its first edit's plain prompt."""
        return [index for index, column in enumerate(self.columns) if column.group == group]

    def satisfiable(self, groups: Sequence[int], room: float = ROOM) -> list[int]:
        """Indices of the columns of some groups that one update can satisfy together (`composition.solver`)."""
        own = [place for place, column in enumerate(self.columns) if column.group in groups]
        some = self.at(own)
        forms = [column.form for column in some.columns]
        return [own[place] for place in satisfiable(some.keys, some.whitened, some.group_of, some.shares, forms, room)]

    def system(self, damping: float) -> System:
        """All columns as one system."""
        return System.of(self.keys, self.whitened, self.group_of, damping, self.shares)


def measure_inputs(model: CausalLM, module: str, rows: Sequence[Row], tokens: int) -> torch.Tensor:
    """The module's input at each row's position, [rows, d_in] float32 on the CPU. Later modules are not run."""

    def inputs(batch: Batch) -> torch.Tensor:
        ids, mask = batch.input_ids, batch.attention_mask
        return inputs_of(model, [module], input_ids=ids, attention_mask=mask, use_cache=False)[module]

    return _measure(model, rows, tokens, inputs)


def measure_outputs(model: CausalLM, module: str, rows: Sequence[Row], tokens: int) -> torch.Tensor:
    """The module's output at each row's position, [rows, d_out] float32 on the CPU. Later modules are not run."""

    def outputs(batch: Batch) -> torch.Tensor:
        ids, mask = batch.input_ids, batch.attention_mask
        return outputs_of(model, [module], input_ids=ids, attention_mask=mask, use_cache=False)[module]

    return _measure(model, rows, tokens, outputs)


def _measure(
    model: CausalLM, rows: Sequence[Row], tokens: int, captured: Callable[[Batch], torch.Tensor]
) -> torch.Tensor:
    """Measured vectors at each row's position, [rows, d]. captured: batch → vectors at all its tokens, [b, seq, d]."""
    # Attention is causal: tokens after the position cannot affect it, so the row is cut there.
    cut = [replace(row, ids=row.ids[: row.position + 1], answer=()) for row in rows]
    result: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for batch in batches(model, cut, range(len(cut)), tokens):
            lines = torch.arange(len(batch.rows), device=batch.rows.device)
            found = captured(batch)[lines, batch.places[:, 0]].float().cpu()
            result.update(zip(batch.rows.tolist(), found, strict=True))
    return torch.stack([result[index] for index in range(len(cut))])


def group_edits(edits: Sequence[Edit], plain: Sequence[FormKey], cosine: float) -> tuple[KeyGroup, ...]:
    """Group edits of one subject whose plain keys have a whitened cosine above `cosine`, transitively."""
    cosines = interference(torch.stack([k.key for k in plain]), torch.stack([k.whitened for k in plain]))
    subjects = [written(edit.subject).folded for edit in edits]
    member_of = list(range(len(edits)))
    for later in range(len(edits)):
        for earlier in range(later):
            if subjects[earlier] == subjects[later] and cosines[earlier, later] > cosine:
                old, new = member_of[later], member_of[earlier]
                member_of = [new if member == old else member for member in member_of]
    first = sorted(set(member_of))
    return tuple(KeyGroup(edits=tuple(i for i, member in enumerate(member_of) if member == g)) for g in first)


def make_columns(
    groups: tuple[KeyGroup, ...], form_keys: Sequence[FormKey], merge_cosine: float, max_columns: int
) -> Columns:
    """Merge each group's form keys into columns.

    The plain prompts' keys come first, then those of the other forms in their order. A key whose whitened cosine with a
    column exceeds `merge_cosine` is averaged into the nearest such column. Otherwise it makes a new column, up to
    `max_columns` besides those of the plain prompts. Further keys are omitted (their prompts are still trained on).
    Each preserved key makes a column of its own, after all others; it is omitted if it coincides with an edited key.
    """
    keys, whitened, columns = list[torch.Tensor](), list[torch.Tensor](), list[Column]()
    for index, group in enumerate(groups):
        members = [key for key in form_keys if key.edit in group.edits and key.share]
        ordered = [k for k in members if k.form == "plain"] + [k for k in members if k.form != "plain"]
        clusters: list[list[FormKey]] = []
        extra = 0
        for key in ordered:
            nearest = _nearest(key, clusters, merge_cosine)
            if nearest is not None:
                clusters[nearest].append(key)
            elif key.form == "plain" or extra < max_columns:
                clusters.append([key])
                extra += key.form != "plain"
        for cluster in clusters:
            keys.append(torch.stack([member.key for member in cluster]).mean(0))
            whitened.append(torch.stack([member.whitened for member in cluster]).mean(0))
            columns.append(Column(group=index, form="+".join(dict.fromkeys(member.form for member in cluster))))
    for index, group in enumerate(groups):
        for key in form_keys:
            if key.edit in group.edits and not key.share:
                keys.append(key.key)
                whitened.append(key.whitened)
                columns.append(Column(group=index, form=key.form, share=0.0))
    made = Columns(torch.stack(keys), torch.stack(whitened), tuple(columns), groups)
    return made.at(sorted(place for group in range(len(groups)) for place in made.satisfiable([group])))


def _nearest(key: FormKey, clusters: list[list[FormKey]], merge_cosine: float) -> int | None:
    """The cluster whose mean key's whitened cosine with `key` is highest, if it exceeds `merge_cosine`."""
    if not clusters:
        return None
    keys = [torch.stack([member.key for member in cluster]).mean(0) for cluster in clusters]
    whitened = [torch.stack([member.whitened for member in cluster]).mean(0) for cluster in clusters]
    cosines = interference(torch.stack([*keys, key.key]), torch.stack([*whitened, key.whitened]))[-1, :-1]
    best = int(cosines.argmax())
    return best if cosines[best] > merge_cosine else None
