"""evaluate: base, weights and IKE asked the same questions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_edit.errors import EditError
from vllm_edit.evaluation.measuring import (
    argmax_outcomes,
    counts_as_right,
    generation_outcomes,
    nll_outcomes,
    summarise,
)
from vllm_edit.evaluation.questions import Question, questions_of
from vllm_edit.evaluation.report import MODES, Answer, Cost, Measure, Mode, Report
from vllm_edit.evaluation.runners.runner import Request, Runner, Scored
from vllm_edit.ike.demonstrations import check_disjoint
from vllm_edit.ike.prefix import build_prefix, wrap
from vllm_edit.patch import Edit, Patch, Split
from vllm_edit.prompting import answer_ids, prompt_ids
from vllm_edit.store.compiled import CompiledPatch

Subject = Patch | CompiledPatch | Sequence[Patch | CompiledPatch]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What an evaluation measures.

    split: the probes asked. max_tokens: of a generated answer. teacher_forced: also score by forcing. latency: so
    many answers are asked alone and timed. answers: keep the raw texts in the report.
    """

    split: Split | None = "gate"
    max_tokens: int = 16
    teacher_forced: bool = True
    latency: int = 8
    answers: bool = False


def evaluate(
    subject: Subject,
    runner: Runner,
    modes: Sequence[Mode] = MODES,
    settings: Settings | None = None,
    progress: Progress = lambda message: None,
) -> Report:
    """Ask every edit and its probes in each mode.

    Args:
        subject: one patch, or several that are each measured alone, such as many single edits. Modes other than
            base need compiled ones. Base is always asked, since locality is judged against it.

    Raises:
        EditError: a mode cannot be measured (not compiled, no demonstrations, or a context too small for the prefix).
    """
    settings = settings or Settings()
    patches = [subject] if isinstance(subject, Patch | CompiledPatch) else list(subject)
    if not patches:
        raise EditError("nothing to evaluate: expected at least one patch")
    asked = [mode for mode in MODES if mode in modes]
    uncompiled = [patch.name for patch in patches if isinstance(patch, Patch)]
    if uncompiled and asked != ["base"]:
        raise EditError(f"{uncompiled[0]} is not compiled: only mode base can be measured; compile it first")

    edits = [edits_of(patch) for patch in patches]
    has_chat = bool(getattr(runner.tokenizer, "chat_template", None))
    questions = [
        question
        for number, some in enumerate(edits)
        for question in questions_of(some, number, split=settings.split, chat=has_chat)
    ]
    if "ike" in asked:
        for patch in patches:
            check_disjoint(edits_of(patch), patch.demonstrations if isinstance(patch, CompiledPatch) else ())

    answers: dict[Mode, list[str]] = {}
    measures: list[Measure] = []
    by_relation: dict[str, list[Measure]] = {}
    costs: list[Cost] = []
    for mode in MODES:
        if mode not in asked and mode != "base":
            continue
        progress(f"{mode}: {len(questions)} answers")
        requests = _requests(questions, patches, mode, runner, settings.max_tokens)
        started = time.perf_counter()
        answers[mode] = runner.generate(requests, settings.max_tokens)
        seconds = time.perf_counter() - started
        if mode not in asked:
            continue
        measures += summarise(generation_outcomes(questions, answers[mode], answers["base"], mode), mode, "generation")
        for relation, rows in _by_relation(questions, edits).items():
            texts, before = [answers[mode][row] for row in rows], [answers["base"][row] for row in rows]
            outcomes = generation_outcomes([questions[row] for row in rows], texts, before, mode)
            by_relation.setdefault(relation, []).extend(summarise(outcomes, mode, "generation"))
        if settings.teacher_forced:
            progress(f"{mode}: teacher forcing")
            expected, rival = _force(questions, requests, runner)
            measures += summarise(argmax_outcomes(questions, expected), mode, "argmax")
            measures += summarise(nll_outcomes(questions, expected, rival), mode, "nll")
        costs.append(_cost(mode, questions, requests, runner, settings, seconds))

    return Report(
        patches=tuple(patch.name for patch in patches),
        engine=runner.name,
        modes=tuple(asked),
        edits=sum(map(len, edits)),
        split=settings.split,
        max_tokens=settings.max_tokens,
        measures=tuple(measures),
        relations={relation: tuple(some) for relation, some in by_relation.items()},
        costs=tuple(costs),
        answers=tuple(_answers(questions, patches, edits, answers)) if settings.answers else None,
    )


def edits_of(patch: Patch | CompiledPatch) -> tuple[Edit, ...]:
    return patch.edits if isinstance(patch, Patch) else patch.manifest.edits


def run_gate(compiled: CompiledPatch, runner: Runner) -> tuple[Report, list[str]]:
    """Measure a compiled patch on its gate probes by free generation and compare with its gate.

    Returns:
        The report, with answers, and one line per metric that missed; none means accepted.
    """
    report = evaluate(compiled, runner, ("base", "weights"), Settings(teacher_forced=False, latency=0, answers=True))
    return report, report.gate(compiled.manifest.gate)


def _requests(
    questions: Sequence[Question],
    patches: Sequence[Patch | CompiledPatch],
    mode: Mode,
    runner: Runner,
    max_tokens: int,
) -> list[Request]:
    requests = []
    for question in questions:
        patch = patches[question.patch]
        if mode == "base" or isinstance(patch, Patch):
            requests.append(Request(question.prompt, question.chat))
        elif mode == "weights":
            requests.append(Request(question.prompt, question.chat, patch))
        else:
            texts = [text for text in (question.expected, question.rival) if text]
            longest = max(len(answer_ids(runner.tokenizer, question.prompt, text, question.chat)) for text in texts)
            budget = runner.context - _length(runner, question.prompt, question.chat) - max(max_tokens, longest)
            prefix = build_prefix(patch.manifest, patch.demonstrations, question.prompt, budget)
            requests.append(Request(wrap(prefix, question.prompt), question.chat))
    return requests


def _by_relation(questions: Sequence[Question], edits: Sequence[Sequence[Edit]]) -> dict[str, list[int]]:
    """Relation → rows of its questions."""
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(edits[question.patch][question.edit].relation, []).append(row)
    return rows


def _force(
    questions: Sequence[Question], requests: Sequence[Request], runner: Runner
) -> tuple[list[Scored | None], list[Scored | None]]:
    """Scores of each question's expected answer and of its rival, None where there is none."""
    pairs = [
        (row, side, (request, text))
        for row, (question, request) in enumerate(zip(questions, requests, strict=True))
        for side, text in enumerate((question.expected, question.rival))
        if text
    ]
    columns: tuple[list[Scored | None], list[Scored | None]] = ([None] * len(questions), [None] * len(questions))
    for (row, side, _), scored in zip(pairs, runner.score([asked for _, _, asked in pairs]), strict=True):
        columns[side][row] = scored
    return columns


def _cost(
    mode: Mode,
    questions: Sequence[Question],
    requests: Sequence[Request],
    runner: Runner,
    settings: Settings,
    seconds: float,
) -> Cost:
    added = [
        _length(runner, request.prompt, request.chat) - _length(runner, question.prompt, question.chat)
        for question, request in zip(questions, requests, strict=True)
    ]
    step = max(1, len(requests) // settings.latency) if settings.latency else 0
    alone = list(requests[:: step or 1])[: settings.latency]
    times = []
    for request in alone[:1] + alone:  # the first is asked twice: once to load what is loaded on first use
        started = time.perf_counter()
        runner.generate([request], settings.max_tokens)
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


def _answers(
    questions: Sequence[Question],
    patches: Sequence[Patch | CompiledPatch],
    edits: Sequence[Sequence[Edit]],
    answers: dict[Mode, list[str]],
) -> list[Answer]:
    found = []
    names = [patch.name for patch in patches]  # a compiled patch's name is a digest: it costs something
    for row, question in enumerate(questions):
        edit = edits[question.patch][question.edit]
        texts = {mode: some[row] for mode, some in answers.items()}
        right = {mode: counts_as_right(question, text, texts["base"]) for mode, text in texts.items()}
        found.append(
            Answer(
                patch=names[question.patch],
                edit=question.edit,
                subject=edit.subject,
                relation=edit.relation,
                metric=question.metric,
                tag=question.tag,
                prompt=question.prompt,
                chat=question.chat,
                expected=question.expected,
                texts=texts,
                right=right,
            )
        )
    return found
