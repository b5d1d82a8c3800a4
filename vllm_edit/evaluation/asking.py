"""Questions put to a runner: as requests of a mode, in chunks; answered freely, or scored with an answer forced."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_edit.composition.scoped import Narrowing
from vllm_edit.errors import EditError
from vllm_edit.evaluation.questions import Question
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.report import Cost, Mode
from vllm_edit.evaluation.runners.runner import Request, Runner, Scored
from vllm_edit.ike.prefix import Edited, build_prefix, wrap
from vllm_edit.ike.scoped import Shelf
from vllm_edit.patch import Patch
from vllm_edit.prompting import answer_ids, prompt_ids
from vllm_edit.store.compiled import CompiledPatch
from vllm_edit.store.site import Site

One = Patch | CompiledPatch | Refused
Progress = Callable[[str, int, int], None]
"""Called with (what is asked, how much is answered, how much there is)."""

CHUNK = 512
"""Requests handed to a runner at once: enough to fill its batches, few enough that progress is seen."""


@dataclass(frozen=True)
class Unserved:
    """A prompt that a server answers with an error instead of a text, and why."""

    reason: str


def requests_of(
    questions: Sequence[Question],
    patches: Sequence[One],
    mode: Mode,
    runner: Runner,
    max_tokens: int,
    site: Site | None = None,
) -> list[Request | Unserved]:
    """What is asked in a mode; in mode ike each prompt has its prefix, within the runner's context.

    site: given, a prompt that needs a higher rank than it has is unserved.
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
            except EditError as error:  # what a server answers with 409 or 400
                requests.append(Unserved(str(error)))
        else:
            if question.patch not in shelves:
                edited: Edited = patch.manifest if isinstance(patch, CompiledPatch) else patch
                shelves[question.patch] = Shelf(edited, patch.demonstrations)
            named = None if scope is None else scope.edits(question.prompt)
            prompt = _prefixed(question, shelves[question.patch], named, runner, max_tokens)
            requests.append(Request(prompt, question.chat))
    return requests


def _prefixed(question: Question, shelf: Shelf, named: Sequence[int] | None, runner: Runner, max_tokens: int) -> str:
    """The question's prompt with its prefix; named: the edits that it may be about, None where the prefix chooses."""
    if named is not None and not named:
        return question.prompt
    texts = [text for text in (question.expected, question.rival) if text]
    longest = max(len(answer_ids(runner.tokenizer, question.prompt, text, question.chat)) for text in texts)
    budget = runner.context - _length(runner, question.prompt, question.chat) - max(max_tokens, longest)
    if named is None:
        prefix = build_prefix(shelf.edited, shelf.demonstrations, question.prompt, budget, subjects=shelf.subjects)
    else:
        prefix = build_prefix(*shelf.of(named), question.prompt, budget)
    return wrap(prefix, question.prompt)


def generate(runner: Runner, requests: Sequence[Request], max_tokens: int, mode: Mode, progress: Progress) -> list[str]:
    """Free greedy answers, in chunks, so that progress is seen."""
    texts: list[str] = []
    for start in range(0, len(requests), CHUNK):
        progress(mode, start, len(requests))
        texts += runner.generate(requests[start : start + CHUNK], max_tokens)
    return texts


def force(
    questions: Sequence[Question], requests: Sequence[Request], runner: Runner, mode: Mode, progress: Progress
) -> tuple[list[Scored | None], list[Scored | None]]:
    """Scores of each question's expected answer and of its rival, None where there is none."""
    pairs = [
        (row, side, (request, text))
        for row, (question, request) in enumerate(zip(questions, requests, strict=True))
        for side, text in enumerate((question.expected, question.rival))
        if text
    ]
    columns: tuple[list[Scored | None], list[Scored | None]] = ([None] * len(questions), [None] * len(questions))
    for start in range(0, len(pairs), CHUNK):
        progress(f"{mode}, teacher forcing", start, len(pairs))
        chunk = pairs[start : start + CHUNK]
        for (row, side, _), scored in zip(chunk, runner.score([asked for _, _, asked in chunk]), strict=True):
            columns[side][row] = scored
    return columns


def cost_of(
    mode: Mode,
    questions: Sequence[Question],
    requests: Sequence[Request],
    runner: Runner,
    seconds: float,
    latency: int,
    max_tokens: int,
) -> Cost:
    """What a mode costs; `latency` of its answers are asked again, alone, and timed."""
    added = [
        _length(runner, request.prompt, request.chat) - _length(runner, question.prompt, question.chat)
        for question, request in zip(questions, requests, strict=True)
    ]
    step = max(1, len(requests) // latency) if latency else 0
    alone = list(requests[:: step or 1])[:latency]
    times = []
    for request in alone[:1] + alone:  # the first is asked twice: once to load what is loaded on first use
        started = time.perf_counter()
        runner.generate([request], max_tokens)
        times.append(time.perf_counter() - started)
    return Cost(
        mode=mode,
        answers=len(requests),
        tokens_added=statistics.fmean(added),
        seconds_per_answer=seconds / len(requests),
        latency_s=statistics.median(times[1:]) if times else None,
        latency_n=len(alone),
    )


def _length(runner: Runner, prompt: str, chat: bool) -> int:
    return len(prompt_ids(runner.tokenizer, prompt, chat))
