"""Training data in patch form: each edit with its probes becomes a prompt to take the gradient on, rows to teach
(the same fact in other words) and rows to keep (everything the edit is not about)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_edit.editing.baselines.one_example import example_rows
from vllm_edit.editing.rome.forms import probe_row
from vllm_edit.errors import EditError
from vllm_edit.models.rows import Row
from vllm_edit.patch import LOCALITY_KINDS, Edit, Probe
from vllm_edit.text import normalise

_TEXT_TOKENS = 24


@dataclass(frozen=True)
class Example:
    """One edit as rows.

    inner: its prompt with the new answer, where the gradient is taken.  taught: prompt and chat turn, paraphrases, and
    the probes of portability, each with the answer after the edit.  kept: locality probes with their true answers (all
    of their tokens are compared with the base's), and the prompt with its new answer read, where the base goes on.
    """

    edit: Edit
    inner: Row
    taught: tuple[Row, ...]
    kept: tuple[Row, ...]

    @classmethod
    def of(cls, edit: Edit, tokenizer: Any) -> Example:
        chat = bool(getattr(tokenizer, "chat_template", None))
        turns = (False, True) if chat else (False,)
        own = [Probe(kind="paraphrase", prompt=edit.prompt, chat=turn) for turn in turns]
        asked = [probe for probe in edit.probes if chat or not probe.chat]
        other = [probe for probe in asked if probe.kind in ("paraphrase", "portability")]
        taught = [probe_row(probe, probe.target or edit.target_new, 0, 0, tokenizer) for probe in (*own, *other)]
        kept = [probe_row(probe, probe.target, 0, 0, tokenizer) for probe in asked if probe.kind in LOCALITY_KINDS]
        ended = [row.ids + row.answer for row in taught[: len(own)]]
        kept += [Row(0, 0, "ended", ids, len(ids) - 1) for ids in ended]
        return cls(edit, example_rows([edit], tokenizer)[0], tuple(taught), tuple(kept))


def text_rows(texts: Iterable[str], tokenizer: Any) -> list[Row]:
    """Unrelated text as rows: after its first token every further one is an answer to be given as the base gives it."""
    rows = []
    for text in texts:
        ids = tuple(tokenizer(text)["input_ids"][:_TEXT_TOKENS])
        if len(ids) > 1:
            rows.append(Row(0, 0, "text", ids[:1], 0, ids[1:]))
    return rows


def split(edits: Sequence[Edit], share: float, seed: int) -> tuple[list[Edit], list[Edit]]:
    """(training, validation): `share` of the *subjects* are for validation, with all their edits."""
    subjects = sorted({normalise(edit.subject) for edit in edits})
    random.Random(f"validation:{seed}").shuffle(subjects)
    held = set(subjects[: max(1, round(share * len(subjects)))])
    if len(held) >= len(subjects):
        raise EditError(f"training needs edits of at least 2 subjects, some for validation; got {len(subjects)}")
    return (
        [edit for edit in edits if normalise(edit.subject) not in held],
        [edit for edit in edits if normalise(edit.subject) in held],
    )


def check_apart(edits: Iterable[Edit], judged: Iterable[str]) -> None:
    """Refuse to train on subjects that an evaluation edits.

    Raises:
        EditError: with the subjects, by any of their names.
    """
    theirs = {normalise(name) for name in judged}
    shared = {edit.subject for edit in edits for name in (edit.subject, *edit.aliases) if normalise(name) in theirs}
    if shared:
        raise EditError(
            f"{len(shared)} subjects would be trained on and judged by, among them {', '.join(sorted(shared)[:5])}; "
            "train on edits of other subjects"
        )


@dataclass(frozen=True)
class Drawn:
    """What one step looks at; `Row.edit` numbers the edits drawn. inner: one row an edit."""

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
    """For every example so many rows of each kind (or all it has), and texts that are given to the edits in turn."""
    drawn = Drawn([], [], [], [])
    for number, example in enumerate(examples):
        drawn.inner.append(replace(example.inner, edit=number))
        for count, rows, into in ((taught, example.taught, drawn.taught), (kept, example.kept, drawn.kept)):
            into.extend(replace(row, edit=number) for row in rng.sample(rows, k=min(count, len(rows))))
    chosen = rng.sample(texts, k=min(unrelated, len(texts)))
    drawn.texts.extend(replace(row, edit=place % len(examples)) for place, row in enumerate(chosen))
    return drawn
