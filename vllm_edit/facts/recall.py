"""Asks a base model for facts: free greedy answers, generated only until they can be judged.

After a plain prompt the answer must begin with the object; an article, a quotation mark and case do not count. An edit
replaces the text right after its prompt, so a later mention does not count. A chat turn may repeat the question first:
there the first line must mention the object. Both also count as right for `evaluation.judging.gives`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_edit.evaluation.judging import gives
from vllm_edit.facts.facts import Fact, Form
from vllm_edit.models.base import Base
from vllm_edit.models.greedy import batches
from vllm_edit.models.short_answers import greedy_until
from vllm_edit.progress import Progress, silent
from vllm_edit.text.first_line import first_line
from vllm_edit.text.matching import normalise, position
from vllm_edit.text.prompts import answer_ids, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BEFORE, _BEFORE_CHAT = 2, 16
"""Maximum tokens before the object: an article and a quotation mark; in a chat, a repetition of the question."""
_ROWS = 128
_LEAST_TOGETHER = 16
"""Minimum number of questions in one form for a separate batch, in which their common beginning is read once."""


@dataclass(frozen=True)
class Question:
    """A fact asked in a form, as plain text or as a chat turn."""

    fact: Fact
    form: Form
    chat: bool = False

    @property
    def prompt(self) -> str:
        return self.form.fill(self.fact.subject.name)


def right(
    base: Base,
    questions: Sequence[Question],
    progress: Progress = silent,
    what: str = "facts asked for",
) -> list[bool]:
    """For each question, True if the base answers it right."""
    prompts = [prompt_ids(base.tokenizer, question.prompt, question.chat) for question in questions]
    found: dict[int, bool] = {}
    for batch in _batches(questions, prompts):
        judges = [_Judge(base.tokenizer, questions[row]) for row in batch]
        made = greedy_until(
            base.model,
            base.tokenizer,
            [prompts[row] for row in batch],
            [judge.most for judge in judges],
            lambda row, tokens, judges=judges: judges[row].enough(tokens),  # type: ignore[misc]
        )
        found |= {row: judge.right(tokens) for row, judge, tokens in zip(batch, judges, made, strict=True)}
        progress(what, len(found), len(questions))
    return [found[row] for row in range(len(questions))]


def _batches(questions: Sequence[Question], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows in batches of similar length: one form per batch if it has many questions, the others mixed."""
    by_form: dict[tuple[str, bool], list[int]] = {}
    for row, question in enumerate(questions):
        by_form.setdefault((question.form.text, question.chat), []).append(row)
    groups = [rows for rows in by_form.values() if len(rows) >= _LEAST_TOGETHER]
    for chat in (False, True):  # a template's beginning is common to all turns
        groups.append(
            [row for (_, at), rows in by_form.items() if at is chat and len(rows) < _LEAST_TOGETHER for row in rows]
        )
    for rows in groups:
        for places in batches([len(prompts[row]) for row in rows], _ROWS):
            yield [rows[place] for place in places]


class _Judge:
    """Judges one question's answer during generation. `most` is the number of tokens that always suffices."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, question: Question) -> None:
        self._tokenizer, self._object, self._chat = tokenizer, question.fact.object, question.chat
        length = len(answer_ids(tokenizer, question.prompt, self._object, question.chat))
        # One more token than the object: a word is complete only when another follows. A number may go on after a mark.
        more = 2 if self._object[-1:].isdecimal() else 1
        self.most = (_BEFORE_CHAT if question.chat else _BEFORE) + length + more

    def enough(self, tokens: Sequence[int]) -> bool:
        """True if more tokens would not change `right`."""
        text = self._text(tokens)
        if "\n" in text.lstrip():
            return True
        if self._is_right(text):
            return self._is_right(self._text(tokens[:-1])) and self._is_right(f"{text}0")
        return not self._chat and not _may_begin(text, self._object)

    def right(self, tokens: Sequence[int]) -> bool:
        return self._is_right(self._text(tokens))

    def _is_right(self, text: str) -> bool:
        return gives(text, self._object) if self._chat else position(first_line(text), self._object) == 0

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def _may_begin(text: str, expected: str) -> bool:
    """True if a line that begins with `text` may begin with `expected` (their first characters are the same)."""
    line = normalise(text.rstrip("\ufffd"))  # an incomplete character
    wanted = normalise(expected)
    return line in ("", "the", "a", "an") or wanted.startswith(line) or line.startswith(wanted)
