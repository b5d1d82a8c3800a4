"""Ends of answers: rows that teach an answer to end where the model would continue its last word.

An edit teaches the answer's tokens. The model generates the next token, which may continue the last word: "Nissan"
becomes "Nissani", a different answer. Every bare prompt therefore has a second row, whose answer has one more token:
the most likely token of the base that ends the word, whatever comes after it: not the comma after "$80", which may
begin "$80,000". Training uses this row only if the word does not end (`editing.rome.rounds`).
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
_DECIDING = 2
"""Tokens after an answer that decide whether it ends. The second counts if the first may continue a number."""


def is_ending(row: Row) -> bool:
    """True for a row of `ending_rows`."""
    return row.form.startswith(_FORM)


def ends(base: Base, row: Row, *following: int) -> bool:
    """True if the answer of an ending row, without its last token, ends as a word when `following` comes next."""
    return _is_ended(*_texts(base, row, following))


def ended(
    base: Base, rows: Sequence[Row], leads: torch.Tensor, after: Callable[[Sequence[Row], Sequence[int]], list[int]]
) -> list[int]:
    """Indices of the ending rows that are not needed: the answer already ends, with the row's token or another.

    Args:
        leads: [rows], the leads of the rows' answers under the update.
        after: gives the most likely id under the update after the prompts of some rows, whose indices it is given too.
    """
    places = [place for place, row in enumerate(rows) if is_ending(row)]
    said: dict[int, tuple[int, ...]] = {place: () for place in places if leads[place] <= 0}
    pending = list(said)
    while pending:
        asked = [replace(rows[place], ids=rows[place].ids + rows[place].answer[:-1] + said[place]) for place in pending]
        for place, token in zip(pending, after(asked, pending), strict=True):
            said[place] += (token,)
        pending = [
            place for place in pending if len(said[place]) < _DECIDING and _may_go_on(base, rows[place], *said[place])
        ]
    return [place for place in places if place not in said or ends(base, rows[place], *said[place])]


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
                    if ends(base, longer, token) and not _may_go_on(base, longer, token):
                        found[index] = longer
                        break
    return [found[index] for index in sorted(found)]


def _may_go_on(base: Base, row: Row, *following: int) -> bool:
    """True if the answer of an ending row ends with `following`, but not if a digit comes next ("$80" in "$80,")."""
    text, longer = _texts(base, row, following)
    return text != longer and _is_ended(text, longer) and not _is_ended(text, f"{longer}0")


def _is_ended(text: str, longer: str) -> bool:
    return not text or not longer.startswith(text) or is_whole(longer, 0, len(text))


def _texts(base: Base, row: Row, following: Sequence[int]) -> tuple[str, str]:
    """The answer of an ending row without its last token, and the same with `following`."""
    answer = row.answer[:-1]
    text, longer = base.tokenizer.batch_decode([list(answer), [*answer, *following]], skip_special_tokens=True)
    return text, longer
