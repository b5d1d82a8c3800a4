"""Builds the requests for a runner in a mode, as a server builds them for its engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site
from vllm_edit.composition.scoped import Narrowing
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError
from vllm_edit.evaluation.questions import Question
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.report import Mode
from vllm_edit.evaluation.runners.runner import Request, Runner
from vllm_edit.ike.prefix import Edited, build_prefix, wrap
from vllm_edit.ike.shelf import Shelf
from vllm_edit.models.lengths import read_of
from vllm_edit.patch import Patch
from vllm_edit.text.prompts import answer_ids, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

One = Patch | CompiledPatch | Refused


@dataclass(frozen=True)
class Unserved:
    """A prompt that a server answers with an error, and the reason."""

    reason: str


def edits_of(patch: One) -> tuple[Edit, ...]:
    return patch.manifest.edits if isinstance(patch, CompiledPatch) else patch.edits


def tokens_of(question: Question, tokenizer: PreTrainedTokenizerFast, max_tokens: int | None) -> int:
    """Token limit of the question's answer. With `max_tokens` None: enough for the longest accepted answer."""
    if max_tokens is not None:
        return max_tokens
    lengths = [len(answer_ids(tokenizer, question.prompt, text, question.chat)) for text in question.accepted]
    return read_of(max(lengths, default=0))


def requests_of(
    questions: Sequence[Question],
    patches: Sequence[One],
    mode: Mode,
    runner: Runner,
    max_tokens: int | None,
    site: Site | None = None,
) -> list[Request | Unserved]:
    """The requests of a mode; in mode ike each prompt has its prefix, within the runner's context.

    Args:
        max_tokens: token limit of an answer (`tokens_of`).
        site: if given, a prompt that needs a higher rank than the site's is `Unserved`.
    """
    requests: list[Request | Unserved] = []
    narrowed = [Narrowing(patch, site) if isinstance(patch, CompiledPatch) else None for patch in patches]
    shelves: dict[int, Shelf] = {}
    for question in questions:
        patch, scope = patches[question.patch], narrowed[question.patch]
        if mode == "base" or isinstance(patch, Patch):
            requests.append(Request(question.prompt, question.chat))
        elif mode == "weights" and scope is not None:
            try:
                requests.append(Request(question.prompt, question.chat, scope.of(question.prompt)))
            except EditError as error:  # a server answers 409 or 400
                requests.append(Unserved(str(error)))
        else:
            if question.patch not in shelves:
                edited: Edited = patch.manifest if isinstance(patch, CompiledPatch) else patch
                shelves[question.patch] = Shelf(edited, patch.demonstrations)
            named = None if scope is None else scope.edits(question.prompt)
            prompt = _prefixed(question, shelves[question.patch], named, runner, max_tokens)
            requests.append(Request(prompt, question.chat))
    return requests


def _prefixed(
    question: Question, shelf: Shelf, named: Sequence[int] | None, runner: Runner, max_tokens: int | None
) -> str:
    """The question's prompt with its prefix. `named`: edits that the prefix may use; None lets the prefix choose."""
    if named is not None and not named:
        return question.prompt
    texts = [text for text in (question.expected, question.rival) if text]
    lengths = [len(answer_ids(runner.tokenizer, question.prompt, text, question.chat)) for text in texts]
    longest = max(*lengths, tokens_of(question, runner.tokenizer, max_tokens))
    budget = runner.context - length_of(runner, question.prompt, question.chat) - longest
    if named is None:
        edited, demonstrations, subjects = shelf.edited, shelf.demonstrations, shelf.subjects
        prefix = build_prefix(edited, demonstrations, question.prompt, budget, subjects=subjects, read=shelf.read)
    else:
        prefix = build_prefix(*shelf.of(named), question.prompt, budget, read=shelf.read)
    return wrap(prefix, question.prompt)


def length_of(runner: Runner, prompt: str, chat: bool) -> int:
    """Tokens of a prompt as it is read."""
    return len(prompt_ids(runner.tokenizer, prompt, chat))
