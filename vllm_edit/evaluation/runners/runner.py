"""Runner: the interface between an evaluation and an engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.models.lengths import check_positions
from vllm_edit.text.prompts import prompt_ids
from vllm_edit.text.quoting import quoted
from vllm_edit.text.thinking import is_mark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt, asked as plain text or as a chat turn, of the base (`patch` None) or with a patch's adapter."""

    prompt: str
    chat: bool = False
    patch: CompiledPatch | None = None


@dataclass(frozen=True)
class Scored:
    """A teacher-forced answer: mean negative log-likelihood per token, and whether every token was the argmax."""

    nll: float
    argmax: bool


@dataclass(frozen=True)
class Reading:
    """A text that the model read: the negative log-likelihood of its predicted `tokens`, summed."""

    nll: float
    tokens: int


class Runner(Protocol):
    """An engine with the base model in it. All methods answer in the order of their requests."""

    @property
    def name(self) -> str:
        """Engine, precision and device, for the report."""

    @property
    def context(self) -> int:
        """The largest number of tokens of prompt and answer together."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast: ...

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        """Greedy answers up to the end of the turn, without special tokens."""

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        """Each request's answer (the string) forced after its prompt; every patch is applied only to its requests."""

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """Each request's prompt as ordinary text, in pieces (`pieces_of`) where it is longer than the context."""


def check_lengths(most: int | None, requests: Sequence[Request], lengths: Sequence[int]) -> None:
    """Raise UnsafeEdit if a request exceeds the model's `most` positions (None: no limit).

    `lengths` are the tokens of each request with its answer, without the answer's last token, which is never read.
    """
    for request, length in zip(requests, lengths, strict=True):
        check_positions(most, length, f"the question {quoted(request.prompt)}, with its answer,")


def pieces_of(tokenizer: PreTrainedTokenizerFast, request: Request, longest: int) -> list[list[int]]:
    """Ids of the request's prompt, in pieces of at most `longest`; pieces too short to predict a token are left out."""
    ids = prompt_ids(tokenizer, request.prompt, request.chat)
    pieces = (ids[start : start + longest] for start in range(0, len(ids), longest))
    return [piece for piece in pieces if len(piece) > 1]


def answer_text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], ends: Iterable[int]) -> str:
    """The text of generated ids up to the first end: an id of `ends`, or a special token that the tokenizer names.

    `ends` are the ids at which generation stops. The token that ends a turn often has no name in the tokenizer.
    Thinking marks do not end the text.
    """
    tokens = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    last = {*ends, *(number for number, token in tokens if not is_mark(token))}
    end = next((place for place, token in enumerate(ids) if token in last), len(ids))
    return str(tokenizer.decode(list(ids[:end])))
