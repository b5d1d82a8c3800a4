"""From judged answers to measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from vllm_edit.evaluation.intervals import bootstrap, wilson
from vllm_edit.evaluation.judging import gives, unchanged
from vllm_edit.evaluation.questions import RELIABILITY, Question
from vllm_edit.evaluation.report import Measure, Mode, Protocol
from vllm_edit.evaluation.runners.runner import Scored

Case = tuple[int, int]
"""(patch, edit): what an interval counts as one observation."""
Outcome = tuple[str, Case, float]
"""(metric, case, value) of one question."""
_NLL = {RELIABILITY: "ES", "paraphrase": "PS", "locality": "NS"}


def counts_as_right(question: Question, answer: str, before: str) -> bool:
    """The question's headline: changing metrics, the wanted answer is given; keeping ones, it is what base says."""
    if question.keeps:
        return unchanged(answer, before)
    return question.expected is not None and gives(answer, question.expected, question.rival)


def generation_outcomes(
    questions: Sequence[Question], answers: Sequence[str], before: Sequence[str], mode: Mode
) -> list[Outcome]:
    """Judge one mode's answers against `before`, base's: `counts_as_right` of each question, and beside it

    `<metric>_right` of a keeping metric: the true answer is given; `old_answer`: the edit's prompt gives target_true.
    "Unchanged" is trivially true of base and left out there.
    """
    outcomes: list[Outcome] = []
    for question, answer, base in zip(questions, answers, before, strict=True):
        case = (question.patch, question.edit)
        if not (question.keeps and mode == "base"):
            right = float(counts_as_right(question, answer, base))
            outcomes += [(metric, case, right) for metric in question.metrics]
        if question.keeps and question.expected is not None:
            still = gives(answer, question.expected, question.rival)
            outcomes.append((f"{question.metric}_right", case, float(still)))
        if question.metric == RELIABILITY and question.rival:
            outcomes.append(("old_answer", case, float(gives(answer, question.rival, question.expected))))
    return outcomes


def argmax_outcomes(questions: Sequence[Question], scored: Sequence[Scored | None]) -> list[Outcome]:
    """Every token of the expected answer is the argmax; for keeping metrics that is the true answer."""
    return [
        (
            f"{question.metric}_right" if question.keeps else question.metric,
            (question.patch, question.edit),
            score.argmax,
        )
        for question, score in zip(questions, scored, strict=True)
        if score is not None
    ]


def nll_outcomes(
    questions: Sequence[Question], expected: Sequence[Scored | None], rival: Sequence[Scored | None]
) -> list[Outcome]:
    """CounterFact's success scores (arXiv 2202.05262, §3.4): the wanted answer has the smaller mean token NLL.

    ES on the edit's prompt, PS on paraphrases: s(new) < s(true). NS on same-relation neighbours: s(true) < s(new).
    `margin` is s(true) − s(new) on the edit's prompt, in nats.
    """
    outcomes: list[Outcome] = []
    for question, wanted, other in zip(questions, expected, rival, strict=True):
        if wanted is None or other is None or question.metric not in _NLL:
            continue
        case = (question.patch, question.edit)
        outcomes.append((_NLL[question.metric], case, float(wanted.nll < other.nll)))
        if question.metric == RELIABILITY:
            outcomes.append(("margin", case, other.nll - wanted.nll))
    return outcomes


def refusals(questions: Iterable[Question], protocol: Protocol) -> list[Outcome]:
    """The outcomes of questions whose edit was refused: 0 in every metric that needs the edit.

    What must not change is left out, as `old_answer` and `margin` are: an edit that is not there harms nothing, and
    counting that as locality would reward refusals.
    """
    failed: list[Outcome] = []
    for question in questions:
        case = (question.patch, question.edit)
        if question.keeps or question.expected is None:
            continue
        if protocol == "generation":
            failed += [(metric, case, 0.0) for metric in question.metrics]
        elif protocol == "argmax":
            failed.append((question.metric, case, 0.0))
        elif question.rival is not None and question.metric in _NLL:
            failed.append((_NLL[question.metric], case, 0.0))
    return failed


def unserved(questions: Iterable[Question], protocol: Protocol) -> list[Outcome]:
    """The outcomes of questions that a server answers with an error: `refusals`, and what must not change fails too.

    The edits are there, and base's answer is not.
    """
    questions = list(questions)
    failed = refusals(questions, protocol)
    for question in questions:
        case = (question.patch, question.edit)
        if not question.keeps:
            continue
        if protocol == "generation":
            failed += [(metric, case, 0.0) for metric in question.metrics]
        if protocol == "nll":
            if question.expected and question.rival and question.metric in _NLL:
                failed.append((_NLL[question.metric], case, 0.0))
        elif question.expected is not None:
            failed.append((f"{question.metric}_right", case, 0.0))
    return failed


def summarise(
    outcomes: Iterable[Outcome], mode: Mode, protocol: Protocol, refused: Sequence[Outcome] = ()
) -> list[Measure]:
    """One measure per metric, in order of first appearance; for `nll` also S, the harmonic mean of ES, PS and NS.

    `refused` are outcomes too, and counted apart.
    """
    by_metric: dict[str, dict[Case, list[float]]] = {}
    for metric, case, value in (*outcomes, *refused):
        by_metric.setdefault(metric, {}).setdefault(case, []).append(value)
    failed = Counter(metric for metric, _, _ in refused)
    measures = [_measure(metric, cases, mode, protocol, failed[metric]) for metric, cases in by_metric.items()]
    parts = [measure for measure in measures if measure.metric in ("ES", "PS", "NS")]
    if len(parts) == 3:
        shares = [measure.value for measure in parts]
        score = 3 / sum(1 / share for share in shares) if all(shares) else 0.0
        n, edits = sum(measure.n for measure in parts), max(measure.edits for measure in parts)
        refused_n = sum(measure.refused for measure in parts)
        measures.append(
            Measure(mode=mode, metric="S", protocol=protocol, value=score, n=n, edits=edits, refused=refused_n)
        )
    return measures


def _measure(
    metric: str, cases: Mapping[Case, Sequence[float]], mode: Mode, protocol: Protocol, refused: int
) -> Measure:
    means = [sum(values) / len(values) for values in cases.values()]
    value, n = sum(means) / len(means), sum(map(len, cases.values()))
    if metric == "margin":
        low, high = bootstrap(means)
    else:
        low, high = wilson(value, len(means) if len(means) > 1 else n)
    return Measure(
        mode=mode,
        metric=metric,
        protocol=protocol,
        value=value,
        low=low,
        high=high,
        interval="bootstrap" if metric == "margin" else "wilson",
        n=n,
        edits=len(means),
        refused=refused,
    )
