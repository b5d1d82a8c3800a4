"""Ends of answers: rows that teach an answer to end where its last word would go on.

An edit teaches the answer's tokens. The model says what follows, which may be another piece of the last word:
"Nissan" becomes "Nissani". Such an answer names something else. Every bare prompt therefore has a second row, whose
answer has one token more: the likeliest one, for the base, that ends the word. It is trained on only where the word
goes on (`editing.rome.rounds`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vllm_edit.models.base import Base
from vllm_edit.models.rows import Row, batches, run_batch
from vllm_edit.text import is_whole

_FORM = "end:"
_LIKELIEST = 50


def is_ending(row: Row) -> bool:
    """True for a row of `ending_rows`."""
    return row.form.startswith(_FORM)


def ends(base: Base, row: Row, following: int) -> bool:
    """True if the answer of an ending's row, but for its last token, ends as a word where `following` comes next."""
    answer = list(row.answer[:-1])
    said, longer = (base.tokenizer.decode(ids, skip_special_tokens=True) for ids in (answer, [*answer, following]))
    return not said or not longer.startswith(said) or is_whole(longer, 0, len(said))


def ending_rows(base: Base, rows: Sequence[Row], tokens: int) -> list[Row]:
    """For each of these rows the one that teaches its answer to end; none where no likely token ends it.

    tokens: most in one pass.
    """
    asked = [replace(row, ids=row.ids + row.answer, answer=()) for row in rows]
    found: dict[int, Row] = {}
    with torch.no_grad():
        for batch in batches(base.model, asked, range(len(asked)), tokens):
            logits = run_batch(base.model, batch)[:, 0]  # [b, V]
            likeliest = logits.topk(min(_LIKELIEST, logits.shape[-1])).indices.tolist()
            for index, candidates in zip(batch.rows.tolist(), likeliest, strict=True):
                row = rows[index]
                for token in candidates:
                    longer = replace(row, form=_FORM + row.form, answer=(*row.answer, token))
                    if ends(base, longer, token):
                        found[index] = longer
                        break
    return [found[index] for index in sorted(found)]
