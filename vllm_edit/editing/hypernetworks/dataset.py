"""Training data from edits with probes: each edit becomes a prompt for the gradient, rows to teach (rephrasings of the
fact) and rows to preserve (facts that the edit must not change)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.hypernetworks.judged import Judged
from vllm_edit.editing.rome.prompt_forms import probe_row
from vllm_edit.errors import EditError
from vllm_edit.models.rows import Row
from vllm_edit.text.matching import normalise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TEXT_TOKENS = 24
_HELD_OUT = "held_out"
"""Tag of probes in wordings that evaluations report as not seen in training."""


@dataclass(frozen=True)
class Example:
    """One edit as rows.

    inner: the prompt with the new answer, on which the gradient is taken.
    taught: prompt, chat turn, paraphrase and portability probes, each with its answer after the edit.
    kept: locality probes with their true answers (all tokens are compared with the base's), and the prompt followed by
    its new answer (the next token is compared with the base's).
    """

    edit: Edit
    inner: Row
    taught: tuple[Row, ...]
    kept: tuple[Row, ...]

    @classmethod
    def of(cls, edit: Edit, tokenizer: PreTrainedTokenizerFast) -> Example:
        chat = bool(getattr(tokenizer, "chat_template", None))
        turns = (False, True) if chat else (False,)
        own = [Probe(kind="paraphrase", prompt=edit.prompt, chat=turn) for turn in turns]
        asked = [probe for probe in edit.probes if chat or not probe.chat]
        other = [probe for probe in asked if probe.kind in ("paraphrase", "portability")]
        taught = [probe_row(probe, probe.target or edit.target_new, 0, 0, tokenizer) for probe in (*own, *other)]
        kept = [probe_row(probe, probe.target, 0, 0, tokenizer) for probe in asked if probe.keeps]
        ended = [row.ids + row.answer for row in taught[: len(own)]]
        kept += [Row(0, 0, "ended", ids, len(ids) - 1) for ids in ended]
        return cls(edit, example_rows([edit], tokenizer)[0], tuple(taught), tuple(kept))


def text_rows(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> list[Row]:
    """Unrelated texts as rows: the first token is the prompt, the others are the answer compared with the base's."""
    rows = []
    for text in texts:
        ids = tuple(tokenizer(text)["input_ids"][:_TEXT_TOKENS])
        if len(ids) > 1:
            rows.append(Row(0, 0, "text", ids[:1], 0, ids[1:]))
    return rows


def split(edits: Sequence[Edit], share: float, seed: int) -> tuple[list[Edit], list[Edit]]:
    """Split the edits into (training, validation): a `share` of the *subjects*, with all their edits, is validation."""
    subjects = sorted({normalise(edit.subject) for edit in edits})
    random.Random(f"validation:{seed}").shuffle(subjects)
    held = set(subjects[: max(1, round(share * len(subjects)))])
    if len(held) >= len(subjects):
        raise EditError(f"training needs edits of at least 2 subjects, some for validation; got {len(subjects)}")
    return (
        [edit for edit in edits if normalise(edit.subject) not in held],
        [edit for edit in edits if normalise(edit.subject) in held],
    )


def without_held_out(edits: Iterable[Edit]) -> list[Edit]:
    """The edits without their probes in held-out wordings (tag `held_out`)."""
    return _with_probes(edits, lambda probe: probe.tag != _HELD_OUT)


def only_tune_probes(edits: Iterable[Edit]) -> list[Edit]:
    """The edits of patch files without their gate probes: only gates and reports may see these."""
    return _with_probes(edits, lambda probe: probe.split == "tune")


def _with_probes(edits: Iterable[Edit], stays: Callable[[Probe], bool]) -> list[Edit]:
    return [edit.model_copy(update={"probes": tuple(filter(stays, edit.probes))}) for edit in edits]


def check_apart(edits: Iterable[Edit], judged: Judged) -> None:
    """Check that no edit is about a subject of an evaluation.

    Raises:
        EditError: subjects overlap, by name or alias; the message names some of them.
    """
    shared = {edit.subject for edit in judged.shared(edits)}
    if shared:
        raise EditError(
            f"{len(shared)} subjects are in the training edits and in the evaluation, among them "
            f"{', '.join(sorted(shared)[:5])}; train on edits of other subjects"
        )


@dataclass(frozen=True)
class Drawn:
    """The rows of one step. `Row.edit` is an index into the sampled `edits`. inner: one row per edit."""

    edits: list[Edit]
    inner: list[Row]
    taught: list[Row]
    kept: list[Row]
    texts: list[Row]


def draw(
    examples: Sequence[Example],
    texts: Sequence[Row],
    rng: random.Random,
    *,
    taught: int,
    kept: int,
    unrelated: int,
) -> Drawn:
    """Sample up to `taught` and `kept` rows of each example, and `unrelated` texts, assigned to the edits in turn."""
    drawn = Drawn([example.edit for example in examples], [], [], [], [])
    for number, example in enumerate(examples):
        drawn.inner.append(replace(example.inner, edit=number))
        for count, rows, into in ((taught, example.taught, drawn.taught), (kept, example.kept, drawn.kept)):
            into.extend(replace(row, edit=number) for row in rng.sample(rows, k=min(count, len(rows))))
    chosen = rng.sample(texts, k=min(unrelated, len(texts)))
    drawn.texts.extend(replace(row, edit=place % len(examples)) for place, row in enumerate(chosen))
    return drawn
