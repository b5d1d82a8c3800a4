"""Asking a base model for facts: free greedy answers, each only as long as it takes to judge it.

An answer is right if its first line mentions the object (`evaluation.judging.gives`), and the object begins within the
first few tokens: "a city in France" gives France, "known for its art, and closer to Spain than to France" does not. An
edit replaces what follows its prompt, so a fact that comes up later in the sentence is of no use to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_edit.evaluation.judging import first_line, gives
from vllm_edit.facts.facts import Fact, Facts, Form
from vllm_edit.facts.pool import Known, Pool, first_form
from vllm_edit.models.base import Base
from vllm_edit.models.greedy import batches
from vllm_edit.models.short_answers import greedy_until
from vllm_edit.prompting import answer_ids, prompt_ids
from vllm_edit.text import is_cjk, normalise, position

Progress = Callable[[str, int, int], None]
"""Called with (what is asked, how much is answered, how much there is)."""

BEFORE = 2
"""Tokens that may stand before the object: an article, a quotation mark."""
BEFORE_CHAT = 16
"""In a chat turn the object may end a sentence that repeats the question."""
_ROWS = 64


@dataclass(frozen=True)
class Question:
    """A fact asked in a form, as plain text or as a chat turn."""

    fact: Fact
    form: Form
    chat: bool = False

    @property
    def prompt(self) -> str:
        return self.form.fill(self.fact.subject.name)


def ask_pool(base: Base, facts: Facts, progress: Progress = lambda what, done, total: None) -> Pool:
    """Ask the base for every fact: in its relation's first statement, and where that is answered right in its first
    question, as a chat turn if the base has a chat template."""
    chat = bool(getattr(base.tokenizer, "chat_template", None))
    stated = [
        Question(fact, form) for fact in facts if (form := first_form(fact.relation.trained, "statement")) is not None
    ]
    given = [
        one for one, is_right in zip(stated, right(base, stated, progress, "facts stated"), strict=True) if is_right
    ]
    put = [
        Question(one.fact, form, chat)
        for one in given
        if (form := first_form(one.fact.relation.trained, "question")) is not None
    ]
    answered = {
        one.fact: one.form
        for one, is_right in zip(put, right(base, put, progress, "facts asked for"), strict=True)
        if is_right
    }
    known = tuple(Known(one.fact, one.form, answered.get(one.fact)) for one in given)
    return Pool(known, dict(Counter(one.fact.relation.id for one in stated)), chat)


def right(
    base: Base,
    questions: Sequence[Question],
    progress: Progress = lambda what, done, total: None,
    what: str = "facts asked for",
) -> list[bool]:
    """For each question: does the base answer it right?

    Questions of one form are asked together: what they begin with is read once.
    """
    tokenizer = base.tokenizer
    prompts = [prompt_ids(tokenizer, one.prompt, one.chat) for one in questions]
    together: dict[tuple[str, bool], list[int]] = {}
    for row, one in enumerate(questions):
        together.setdefault((one.form.text, one.chat), []).append(row)
    found: dict[int, bool] = {}
    for rows in together.values():
        for places in batches([len(prompts[row]) for row in rows], _ROWS):
            batch = [rows[place] for place in places]
            judges = [_Judge(tokenizer, questions[row]) for row in batch]
            made = greedy_until(
                base.model,
                tokenizer,
                [prompts[row] for row in batch],
                [judge.most for judge in judges],
                lambda row, tokens, judges=judges: judges[row].enough(tokens),  # type: ignore[misc]
            )
            found |= {row: judge.right(tokens) for row, judge, tokens in zip(batch, judges, made, strict=True)}
            progress(what, len(found), len(questions))
    return [found[row] for row in range(len(questions))]


class _Judge:
    """Judges one question's answer while it is written. most: tokens after which nothing can change any more."""

    def __init__(self, tokenizer: Any, question: Question) -> None:
        self._tokenizer, self._object = tokenizer, question.fact.object
        self._before = BEFORE_CHAT if question.chat else BEFORE
        # One more than the object needs: a word is whole only when something else follows it.
        length = len(answer_ids(tokenizer, question.prompt, self._object, question.chat))
        self.most = self._before + length + 1

    def enough(self, tokens: Sequence[int]) -> bool:
        """True if more tokens would not change `right`."""
        text = self._text(tokens)
        if "\n" in text.lstrip():
            return True
        if gives(text, self._object):
            return gives(self._text(tokens[:-1]), self._object)
        return len(tokens) > self._before and not _is_beginning(text, self._object)

    def right(self, tokens: Sequence[int]) -> bool:
        return gives(self._text(tokens), self._object)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def _is_beginning(text: str, expected: str) -> bool:
    """True if the first line ends with the beginning of `expected`, or with all of it."""
    line = normalise(first_line(text).rstrip("\ufffd"))  # a character of which some bytes are still to come
    wanted = normalise(expected)
    return any(
        line.endswith(wanted[:length]) and _starts_word(line, len(line) - length)
        for length in range(1, min(len(wanted), len(line)) + 1)
    ) or (position(line, expected) is not None)


def _starts_word(line: str, place: int) -> bool:
    return place == 0 or not line[place - 1].isalnum() or is_cjk(line[place - 1])
