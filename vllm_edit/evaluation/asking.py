"""Asks a runner all questions in each mode, in chunks: free generation, and scores by teacher forcing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import Site
from vllm_edit.edit import Edit
from vllm_edit.evaluation.evaluation_settings import EvaluationSettings
from vllm_edit.evaluation.questions import Question, not_asked, questions_of
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.report import MODES, Cost, Mode
from vllm_edit.evaluation.requests import One, Unserved, edits_of, length_of, requests_of, tokens_of
from vllm_edit.evaluation.runners.runner import Request, Runner, Scored
from vllm_edit.evaluation.sheet import Reply, Sheet
from vllm_edit.models.lengths import READ
from vllm_edit.progress import Progress

CHUNK = 512
"""Requests per call of a runner: enough to fill its batches, few enough to show progress."""


def ask(
    patches: Sequence[One],
    runner: Runner,
    modes: Sequence[Mode],
    settings: EvaluationSettings,
    progress: Progress,
    site: Site | None = None,
    edits: Sequence[Sequence[Edit]] | None = None,
) -> tuple[list[Sheet], list[Cost]]:
    """Ask each patch's questions in base and in `modes`; one sheet for each patch, one cost for each of `modes`.

    Base is asked first; a request that a mode would send to the base unchanged is not repeated.

    Args:
        edits: for each patch the edits to ask about; by default its own.
    """
    has_chat = bool(getattr(runner.tokenizer, "chat_template", None))
    edits = [edits_of(patch) for patch in patches] if edits is None else edits
    questions = [
        question
        for number, some in enumerate(edits)
        for question in questions_of(some, number, split=settings.split, chat=has_chat)
    ]
    replies: dict[Mode, list[Reply]] = {}
    costs: list[Cost] = []
    for mode in MODES:
        if mode != "base" and mode not in modes:
            continue
        replies[mode], cost = _replies(questions, patches, mode, runner, settings, progress, site, replies.get("base"))
        if cost is not None and mode in modes:
            costs.append(cost)
    rows_of: list[list[int]] = [[] for _ in patches]
    for row, question in enumerate(questions):
        rows_of[question.patch].append(row)
    sheets = [
        Sheet(
            patch=patch.name,
            edits=tuple((edit.subject, edit.relation) for edit in edits[number]),
            questions=tuple(questions[row].of_patch(0) for row in rows),
            replies={mode: tuple(some[row] for row in rows) for mode, some in replies.items()},
            refused=patch.reason if isinstance(patch, Refused) else "",
            not_asked=not_asked(edits[number], split=settings.split, chat=has_chat),
            method=patch.manifest.method if isinstance(patch, CompiledPatch) else "",
        )
        for number, (patch, rows) in enumerate(zip(patches, rows_of, strict=True))
    ]
    return sheets, costs


def _replies(
    questions: Sequence[Question],
    patches: Sequence[One],
    mode: Mode,
    runner: Runner,
    settings: EvaluationSettings,
    progress: Progress,
    site: Site | None,
    before: Sequence[Reply] | None,
) -> tuple[list[Reply], Cost | None]:
    """One mode's reply to every question, and its cost if anything was asked. `before`: base's replies, if known."""
    found: dict[int, Reply] = {}
    asked: dict[int, Request] = {}
    # A refused patch has no adapter; mode ike needs none.
    lacking = {number for number, patch in enumerate(patches) if mode == "weights" and isinstance(patch, Refused)}
    put = [row for row, question in enumerate(questions) if question.patch not in lacking]
    made = requests_of([questions[row] for row in put], patches, mode, runner, settings.max_tokens, site)
    for row, request in zip(put, made, strict=True):
        if isinstance(request, Unserved):
            found[row] = Reply(reason=request.reason)
        elif before is not None and request.patch is None and request.prompt == questions[row].prompt:
            found[row] = before[row]
        else:
            asked[row] = request
    requests, rows = list(asked.values()), list(asked)
    started = time.perf_counter()
    tokens = [tokens_of(questions[row], runner.tokenizer, settings.max_tokens) for row in rows]
    texts = generate(runner, requests, tokens, mode, progress)
    seconds = time.perf_counter() - started
    expected: Sequence[Scored | None] = [None] * len(rows)
    rival = expected
    if settings.teacher_forced:
        expected, rival = force([questions[row] for row in rows], requests, runner, mode, progress)
    for place, row in enumerate(rows):
        question, request = questions[row], requests[place]
        added = length_of(runner, request.prompt, request.chat) - length_of(runner, question.prompt, question.chat)
        found[row] = Reply(texts[place], expected[place], rival[place], added)
    served = [reply for reply in found.values() if reply.text is not None]
    cost = None
    if served:
        latency, count = _latency(requests, runner, settings)
        cost = Cost(
            mode=mode,
            answers=len(served),
            tokens_added=statistics.fmean(reply.tokens_added for reply in served),
            seconds_per_answer=seconds / len(rows) if rows else 0.0,
            latency_s=latency,
            latency_n=count,
            asked=len(rows),
        )
    return [found.get(row, Reply()) for row in range(len(questions))], cost


def generate(
    runner: Runner, requests: Sequence[Request], tokens: Sequence[int], mode: Mode, progress: Progress
) -> list[str]:
    """Free greedy answers of at most `tokens[row]` tokens, in chunks, to show progress.

    An answer's length limit depends only on its question.
    """
    rows_of: dict[int, list[int]] = {}
    for row, most in enumerate(tokens):
        rows_of.setdefault(most, []).append(row)
    texts: dict[int, str] = {}
    for most, rows in rows_of.items():
        for start in range(0, len(rows), CHUNK):
            progress(mode, len(texts), len(requests))
            chunk = rows[start : start + CHUNK]
            texts |= zip(chunk, runner.generate([requests[row] for row in chunk], most), strict=True)
    return [texts[row] for row in range(len(requests))]


def force(
    questions: Sequence[Question], requests: Sequence[Request], runner: Runner, mode: Mode, progress: Progress
) -> tuple[list[Scored | None], list[Scored | None]]:
    """Scores of each question's expected answer and of its rival, None where a question has none."""
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


def _latency(requests: Sequence[Request], runner: Runner, settings: EvaluationSettings) -> tuple[float | None, int]:
    """Median seconds of single requests, after a warm-up, and their number."""
    if not requests or not settings.latency:
        return None, 0
    step = max(1, len(requests) // settings.latency)
    alone = list(requests[::step])[: settings.latency]
    times = []
    for request in alone[:1] + alone:  # the first is repeated, as a warm-up
        started = time.perf_counter()
        runner.generate([request], settings.max_tokens or READ)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:]), len(alone)
