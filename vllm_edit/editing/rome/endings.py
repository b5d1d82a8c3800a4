"""Ends of answers: rows that teach an answer to end where the model would continue its last word.

An edit teaches the answer's tokens. The model generates the next token, which may continue the last word: "Nissan"
becomes "Nissani", a different answer. Every bare prompt therefore has a second row, whose answer has one more token:
the most likely token of the base that ends the word. Training uses this row only if the word does not end
(`editing.rome.rounds`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vllm_edit.models.base import Base
from vllm_edit.models.rows import Row, batches, run_batch
from vllm_edit.text.matching import is_whole

_FORM = "end:"
_LIKELIEST = 50


def is_ending(row: Row) -> bool:
    """True for a row of `ending_rows`."""
    return row.form.startswith(_FORM)


def ends(base: Base, row: Row, following: int) -> bool:
    """True if the answer of an ending row, without its last token, ends as a word when `following` comes next."""
    answer = list(row.answer[:-1])
    text, longer = base.tokenizer.batch_decode([answer, [*answer, following]], skip_special_tokens=True)
    return not text or not longer.startswith(text) or is_whole(longer, 0, len(text))


def ended(
    base: Base, rows: Sequence[Row], leads: torch.Tensor, after: Callable[[Sequence[Row], Sequence[int]], list[int]]
) -> list[int]:
    """Indices of the ending rows that are not needed: the answer already ends, with the row's token or another.

    Args:
        leads: [rows], the leads of the rows' answers under the update.
        after: gives the most likely id under the update after the prompts of some rows, whose indices it is given too.
    """
    places = [place for place, row in enumerate(rows) if is_ending(row)]
    other = [place for place in places if leads[place] <= 0]
    asked = [replace(rows[place], ids=rows[place].ids + rows[place].answer[:-1]) for place in other]
    longer = {
        place for place, token in zip(other, after(asked, other), strict=True) if not ends(base, rows[place], token)
    }
    return [place for place in places if place not in longer]


def ending_rows(base: Base, rows: Sequence[Row], tokens: int) -> list[Row]:
    """For each row, the row that teaches its answer to end; omitted if no likely token ends the word.

    tokens: maximum number of tokens in one forward pass.
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
