"""The seeded random choices of training documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from vllm_edit.facts.facts import Fact, Facts, Form, Subject
from vllm_edit.facts.split import included
from vllm_edit.text.scripts import is_cjk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")


def _vocabulary(tokenizer: PreTrainedTokenizerFast | None) -> tuple[list[str], list[str]]:
    """Single-token lower-case words and single-token Chinese characters, in a fixed order."""
    if tokenizer is None:
        return [], []
    pieces = [str(tokenizer.decode([number])) for number in range(len(tokenizer))]
    words = [piece[1:] for piece in pieces if piece[:1] == " " and piece[1:].isascii() and piece[1:].isalpha()]
    return [word for word in words if len(word) > 2 and word.islower()], [
        p for p in pieces if len(p) == 1 and is_cjk(p)
    ]


class Draws:
    """Choices among facts, forms, names and words, all from `random`.

    Some combinations are never drawn, so that answering them is generalisation: a tenth of each subject's forms.
    """

    def __init__(self, facts: Facts, tokenizer: PreTrainedTokenizerFast | None, seed: int) -> None:
        self.facts, self.random = facts, random.Random(seed)
        self.subjects = [subject for subject in facts.subjects if subject.facts]
        self.grouped = [group for group in facts.by_relation.values() if group]
        self._words, self._characters = _vocabulary(tokenizer)

    def any_subject(self) -> Subject:
        return self.random.choice(self.subjects)

    def any_fact(self) -> Fact:
        """Uniform over relations, so that small ones are not forgotten."""
        return self.random.choice(self.random.choice(self.grouped))

    def form(self, fact: Fact) -> Form:
        allowed = [f for f in fact.relation.trained if included(fact.subject.name, f.text, share=0.9)]
        return self.random.choice(allowed or list(fact.relation.trained))

    def name(self, subject: Subject) -> str:
        if subject.aliases and self.random.random() < 0.25:
            return self.random.choice(subject.aliases)
        return subject.name

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.random.sample(list(items), k=len(items))

    def noise(self, chinese: bool) -> str:
        """A random word (Chinese: a character) of the vocabulary."""
        words = self._characters if chinese else self._words
        return self.random.choice(words) if words else ""
