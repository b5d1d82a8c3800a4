"""evaluate: base, weights and IKE asked the same questions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_edit.errors import EditError
from vllm_edit.evaluation.asking import One, Progress, Unserved, cost_of, force, generate, requests_of
from vllm_edit.evaluation.measuring import (
    Outcome,
    argmax_outcomes,
    counts_as_right,
    generation_outcomes,
    nll_outcomes,
    refusals,
    summarise,
    unserved,
)
from vllm_edit.evaluation.perplexity import drift_of
from vllm_edit.evaluation.questions import Question, not_asked, questions_of
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.report import MODES, Answer, Cost, Measure, Mode, Protocol, Report
from vllm_edit.evaluation.runners.runner import Request, Runner
from vllm_edit.ike.demonstrations import check_disjoint
from vllm_edit.patch import Edit, Patch, Split
from vllm_edit.store.compiled import CompiledPatch
from vllm_edit.store.site import Site

Subject = One | Sequence[One]


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
    progress: Progress = lambda what, done, total: None,
    site: Site | None = None,
    passages: Sequence[str] = (),
) -> Report:
    """Ask every edit and its probes in each mode.

    Args:
        subject: one patch, or several that are each measured alone, such as many single edits. Modes other than
            base need compiled ones. Base is always asked, since locality is judged against it. A refused one has
            nothing to ask in mode weights: there it fails what needs the edit, and locality is not counted. Of a patch
            with scope subject, a prompt that a server would refuse fails whatever it is asked for.
        site: given, its maximum rank is what one prompt may need at most, as it is in serving.
        passages: ordinary text; given, the report has the drift of its perplexity in mode weights.

    Raises:
        EditError: a mode cannot be measured (not compiled, no demonstrations, or a context too small for the prefix).
    """
    settings = settings or Settings()
    patches = [subject] if isinstance(subject, One) else list(subject)
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
    left_out = sum((not_asked(some, split=settings.split, chat=has_chat) for some in edits), Counter[str]())
    if "ike" in asked:
        for patch in patches:
            check_disjoint(edits_of(patch), () if isinstance(patch, Patch) else patch.demonstrations)

    answers: dict[Mode, dict[int, str]] = {}  # by mode and row of `questions`
    measures: list[Measure] = []
    by_relation: dict[str, list[Measure]] = {}
    costs: list[Cost] = []
    errors: dict[int, str] = {}  # by row of `questions`, in mode weights
    for mode in MODES:
        if mode not in asked and mode != "base":
            continue
        refused = {row for row, one in enumerate(questions) if _is_refused(patches[one.patch], mode)}
        rows = [row for row in range(len(questions)) if row not in refused]
        made = requests_of([questions[row] for row in rows], patches, mode, runner, settings.max_tokens, site)
        asked_for = dict(zip(rows, made, strict=True))
        lacking = {row: one.reason for row, one in asked_for.items() if isinstance(one, Unserved)}
        errors |= lacking
        rows = [row for row in rows if row not in lacking]
        put = [questions[row] for row in rows]
        requests = [one for one in asked_for.values() if isinstance(one, Request)]
        started = time.perf_counter()
        answers[mode] = dict(zip(rows, generate(runner, requests, settings.max_tokens, mode, progress), strict=True))
        seconds = time.perf_counter() - started
        if mode not in asked:
            continue

        outcomes: dict[Protocol, list[Outcome]] = {"generation": _generated(questions, rows, answers, mode)}
        if settings.teacher_forced:
            expected, rival = force(put, requests, runner, mode, progress)
            outcomes["argmax"], outcomes["nll"] = argmax_outcomes(put, expected), nll_outcomes(put, expected, rival)
        for protocol, found in outcomes.items():
            failed = _failed(questions, range(len(questions)), refused, lacking, protocol)
            measures += summarise(found, mode, protocol, failed)
        for relation, own in _by_relation(questions, edits).items():
            some = _generated(questions, [row for row in own if row in answers[mode]], answers, mode)
            failed = _failed(questions, own, refused, lacking, "generation")
            by_relation.setdefault(relation, []).extend(summarise(some, mode, "generation", failed))
        if requests:
            costs.append(cost_of(mode, put, requests, runner, seconds, settings.latency, settings.max_tokens))

    compiled = [patch for patch in patches if isinstance(patch, CompiledPatch)]
    drift = None
    if passages and compiled and "weights" in asked:
        progress("perplexity", 0, 1)
        drift = drift_of(passages, compiled, runner, site)
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
        refused={patch.name: patch.reason for patch in patches if isinstance(patch, Refused)},
        unserved=_reasons(questions, patches, errors),
        not_asked=dict(left_out),
        drift=drift,
        answers=tuple(_answers(questions, patches, edits, answers)) if settings.answers else None,
    )


def edits_of(patch: One) -> tuple[Edit, ...]:
    return patch.manifest.edits if isinstance(patch, CompiledPatch) else patch.edits


def run_gate(
    compiled: CompiledPatch, runner: Runner, site: Site | None = None, passages: Sequence[str] = ()
) -> tuple[Report, list[str]]:
    """Measure a compiled patch on its gate probes by free generation and compare with its gate.

    site: as above. passages: the same; read only where the gate limits the drift.

    Returns:
        The report, with answers, and one line per metric that missed; none means accepted.
    """
    settings = Settings(teacher_forced=False, latency=0, answers=True)
    gate = compiled.manifest.gate
    text = () if gate.perplexity_drift is None else passages
    report = evaluate(compiled, runner, ("base", "weights"), settings, site=site, passages=text)
    return report, report.gate(gate)


def _is_refused(patch: One, mode: Mode) -> bool:
    """A refused patch has no adapter; its prompt prefix needs none."""
    return mode == "weights" and isinstance(patch, Refused)


def _failed(
    questions: Sequence[Question],
    rows: Iterable[int],
    refused: Container[int],
    lacking: Container[int],
    protocol: Protocol,
) -> list[Outcome]:
    """Outcomes of those rows that were not asked: of refused edits, and of prompts that a server would refuse."""
    rows = list(rows)
    return [
        *refusals((questions[row] for row in rows if row in refused), protocol),
        *unserved((questions[row] for row in rows if row in lacking), protocol),
    ]


def _reasons(
    questions: Sequence[Question], patches: Sequence[One], errors: Mapping[int, str]
) -> dict[str, dict[str, str]]:
    """Patch → prompt → why it would be refused."""
    told: dict[str, dict[str, str]] = {}
    for row, reason in errors.items():
        told.setdefault(patches[questions[row].patch].name, {})[questions[row].prompt] = reason
    return told


def _by_relation(questions: Sequence[Question], edits: Sequence[Sequence[Edit]]) -> dict[str, list[int]]:
    """Relation → rows of its questions."""
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(edits[question.patch][question.edit].relation, []).append(row)
    return rows


def _generated(
    questions: Sequence[Question], rows: Sequence[int], answers: Mapping[Mode, Mapping[int, str]], mode: Mode
) -> list[Outcome]:
    """Outcomes of free generation of some rows."""
    texts, before = [answers[mode][row] for row in rows], [answers["base"][row] for row in rows]
    return generation_outcomes([questions[row] for row in rows], texts, before, mode)


def _answers(
    questions: Sequence[Question],
    patches: Sequence[One],
    edits: Sequence[Sequence[Edit]],
    answers: Mapping[Mode, Mapping[int, str]],
) -> list[Answer]:
    found = []
    names = [patch.name for patch in patches]  # a compiled patch's name is a digest: it costs something
    for row, question in enumerate(questions):
        edit = edits[question.patch][question.edit]
        texts = {mode: some[row] for mode, some in answers.items() if row in some}
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
