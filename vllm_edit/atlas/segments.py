"""Segments of training documents, and their conversion to token ids with loss weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_edit.text.scripts import is_cjk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPT_WEIGHT = 0.15  # loss on a prompt's tokens: enough to stay a language model, not enough to spend capacity on
_MOST_CACHED = 400_000


@dataclass(frozen=True)
class Segment:
    """A piece of a document and the weight of its tokens in the loss.

    `tells` is the position in the text at which an in-context object begins. For an answer, `uses` is the index of the
    document's segment that holds the answer, or -1 if the answer is recalled.
    """

    text: str
    weight: float
    tells: int | None = None
    uses: int | None = None


@dataclass(frozen=True)
class Example:
    """Token ids, each with the weight of its prediction in the loss.

    `objects` holds the positions of in-context objects' first tokens. `looks` holds, for each answer in a "New Fact"
    document, the position of its prompt's last token and that of the in-context object (or of the first token).
    """

    ids: list[int]
    weights: list[float]
    objects: list[int] = field(default_factory=list)
    looks: list[tuple[int, int]] = field(default_factory=list)

    def cut(self, length: int) -> Example:
        """The first `length` tokens."""
        return Example(
            self.ids[:length],
            self.weights[:length],
            [place for place in self.objects if place < length],
            [(place, key) for place, key in self.looks if place < length],
        )


class Encoder:
    """Turns documents into examples. Each segment is encoded by itself, as prompts and answers are in use."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}

    def encode(self, segments: list[Segment]) -> Example:
        """The document between a begin and an end token."""
        ids, weights = [self._tokenizer.bos_token_id], [0.0]
        objects: list[int] = []
        looks: list[tuple[int, int]] = []
        for segment in segments:
            piece = self._ids(segment.text)
            if segment.tells is not None:
                objects.append(len(ids) + len(self._ids(segment.text[: segment.tells])))
            if segment.uses is not None:
                looks.append((len(ids) - 1, objects[segment.uses] if segment.uses >= 0 else 0))
            ids += piece
            weights += [segment.weight] * len(piece)
        return Example([*ids, self._tokenizer.eos_token_id], [*weights, PROMPT_WEIGHT], objects, looks)

    def size(self, segments: list[Segment]) -> int:
        """Tokens of the segments."""
        return sum(len(self._ids(segment.text)) for segment in segments)

    def _ids(self, text: str) -> list[int]:
        piece = self._cache.get(text)
        if piece is None:
            piece = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(self._cache) < _MOST_CACHED:
                self._cache[text] = piece
        return piece

    def packed(self, document: Callable[[], list[Segment]], length: int) -> Example:
        """`length` tokens of documents one after the other."""
        whole = Example([], [])
        while (start := len(whole.ids)) < length:
            example = self.encode(document())
            whole = Example(
                whole.ids + example.ids,
                whole.weights + example.weights,
                whole.objects + [start + place for place in example.objects],
                whole.looks + [(start + place, start + key) for place, key in example.looks],
            )
        return whole.cut(length)


def full_stop(prompt: str, answer: str) -> str:
    """The sentence end in the language of prompt and answer."""
    return "。" if is_cjk(answer[-1]) or is_cjk(prompt[-1]) else "."
