"""Computes a report from sheets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from vllm_edit.evaluation.evaluation_settings import EvaluationSettings
from vllm_edit.evaluation.measuring import (
    Outcome,
    argmax_outcomes,
    counts_as_right,
    generation_outcomes,
    nll_outcomes,
    refusals,
    shift_outcomes,
    summarise,
    unserved,
)
from vllm_edit.evaluation.questions import Question
from vllm_edit.evaluation.report import Answer, Cost, Drift, Measure, Mode, Protocol, Report
from vllm_edit.evaluation.sheet import Reply, Sheet, with_numbers
from vllm_edit.models.lengths import READ

Replied = tuple[Question, Mapping[Mode, Reply]]
"""A question, and each mode's reply to it."""
Group = TypeVar("Group")


def report_of(
    sheets: Sequence[Sheet],
    modes: Sequence[Mode],
    settings: EvaluationSettings,
    engine: str,
    costs: Sequence[Cost] = (),
    drift: Drift | None = None,
) -> Report:
    """Compute the report of `modes`; every sheet must also hold base's replies."""
    replied = with_numbers(sheets)
    measures = [measure for mode in modes for measure in _measures(replied, mode, settings)]
    relations: dict[str, list[Replied]] = {}
    sizes: dict[int, list[Replied]] = {}
    for question, replies in replied:
        edits = sheets[question.patch].edits
        _, relation = edits[question.edit]
        relations.setdefault(relation, []).append((question, replies))
        sizes.setdefault(len(edits), []).append((question, replies))
    return Report(
        patches=tuple(sheet.patch for sheet in sheets),
        engine=engine,
        modes=tuple(modes),
        edits=sum(len(sheet.edits) for sheet in sheets),
        split=settings.split,
        max_tokens=settings.max_tokens or READ,
        measures=tuple(measures),
        relations=_by_group(relations, modes),
        sizes=_by_group(dict(sorted(sizes.items())), modes) if len(sizes) > 1 else {},
        methods=tuple(dict.fromkeys(sheet.method for sheet in sheets if sheet.method)),
        costs=tuple(costs),
        refused={sheet.patch: sheet.refused for sheet in sheets if sheet.refused},
        unserved=_reasons(sheets, replied),
        not_asked=dict(sum((Counter(sheet.not_asked) for sheet in sheets), Counter[str]())),
        drift=drift,
        answers=tuple(_answer(sheets, *pair) for pair in replied) if settings.answers else None,
    )


def _by_group(groups: Mapping[Group, Sequence[Replied]], modes: Sequence[Mode]) -> dict[Group, tuple[Measure, ...]]:
    """The measures of free generation of each group of questions."""
    return {
        group: tuple(measure for mode in modes for measure in _generated(own, mode)) for group, own in groups.items()
    }


def _measures(replied: Sequence[Replied], mode: Mode, settings: EvaluationSettings) -> list[Measure]:
    """All measures of a mode."""
    measures = _generated(replied, mode)
    if not settings.teacher_forced:
        return measures
    answered = [(question, replies[mode], replies["base"]) for question, replies in replied if _text(replies, mode)]
    questions = [question for question, _, _ in answered]
    expected, rival = [reply.expected for _, reply, _ in answered], [reply.rival for _, reply, _ in answered]
    nll = nll_outcomes(questions, expected, rival)
    if mode != "base":
        before = [base.expected for _, _, base in answered], [base.rival for _, _, base in answered]
        nll += shift_outcomes(questions, (expected, rival), before)
    outcomes: dict[Protocol, list[Outcome]] = {"argmax": argmax_outcomes(questions, expected), "nll": nll}
    for protocol, found in outcomes.items():
        measures += summarise(found, mode, protocol, _failed(replied, mode, protocol))
    return measures


def _generated(replied: Sequence[Replied], mode: Mode) -> list[Measure]:
    """The measures of free generation."""
    answered = [(question, replies) for question, replies in replied if _text(replies, mode)]
    texts, before = ([replies[which].text or "" for _, replies in answered] for which in (mode, "base"))
    outcomes = generation_outcomes([question for question, _ in answered], texts, before, mode)
    return summarise(outcomes, mode, "generation", _failed(replied, mode, "generation"))


def _failed(replied: Sequence[Replied], mode: Mode, protocol: Protocol) -> list[Outcome]:
    """Outcomes of questions without an answer: refused edits, and prompts that a server would refuse."""
    left = [(question, replies[mode]) for question, replies in replied if not _text(replies, mode)]
    return [
        *refusals((question for question, reply in left if not reply.reason), protocol),
        *unserved((question for question, reply in left if reply.reason), protocol),
    ]


def _text(replies: Mapping[Mode, Reply], mode: Mode) -> bool:
    """True if the mode answered, possibly with an empty text."""
    return replies[mode].text is not None


def _reasons(sheets: Sequence[Sheet], replied: Sequence[Replied]) -> dict[str, dict[str, str]]:
    """Patch → prompt → reason why a server would refuse it."""
    found: dict[str, dict[str, str]] = {}
    for question, replies in replied:
        for reply in replies.values():
            if reply.reason:
                found.setdefault(sheets[question.patch].patch, {})[question.prompt] = reply.reason
    return found


def _answer(sheets: Sequence[Sheet], question: Question, replies: Mapping[Mode, Reply]) -> Answer:
    sheet = sheets[question.patch]
    subject, relation = sheet.edits[question.edit]
    texts = {mode: reply.text for mode, reply in replies.items() if reply.text is not None}
    return Answer(
        patch=sheet.patch,
        edit=question.edit,
        subject=subject,
        relation=relation,
        metric=question.metric,
        tag=question.tag,
        prompt=question.prompt,
        chat=question.chat,
        expected=question.expected,
        expected_aliases=question.expected_aliases,
        texts=texts,
        right={mode: counts_as_right(question, text, texts["base"]) for mode, text in texts.items()},
    )
