"""Computes measures from judged answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from vllm_edit.evaluation.intervals import Resampled, bootstrap, resampled, resampled_means, wilson
from vllm_edit.evaluation.judging import gives_any, unchanged
from vllm_edit.evaluation.questions import DEFAULT, RELIABILITY, Question
from vllm_edit.evaluation.report import Measure, Mode, Protocol
from vllm_edit.evaluation.runners.runner import Scored

Case = tuple[int, int]
"""(patch, edit): the unit of observation for intervals."""
Outcome = tuple[str, Case, float]
"""(metric, case, value) of one question."""
Pair = tuple[Sequence[Scored | None], Sequence[Scored | None]]
"""The scores of each question's expected answer, and those of its rival."""
_SUCCESS = {RELIABILITY: "ES", "paraphrase": "PS", "locality": "NS"}
_MARGIN = {"ES": "EM", "PS": "PM", "NS": "NM"}
NATS = ("EM", "PM", "NM", "NM_shift", "NS_shift")
"""Metrics that are differences, not shares; their means have intervals by resampling edits, or prompts of one edit."""


def counts_as_right(question: Question, answer: str, before: str) -> bool:
    """True if a changing question has the wanted answer, or a keeping question the same answer as base.

    A default probe also passes if the answer still gives the known fact.
    """
    given = gives_any(answer, question.accepted, question.rivals)
    if question.keeps:
        return unchanged(answer, before) or (given and question.tag == DEFAULT)
    return given


def generation_outcomes(
    questions: Sequence[Question], answers: Sequence[str], before: Sequence[str], mode: Mode
) -> list[Outcome]:
    """Judge one mode's answers; `before` holds base's.

    Each question has the outcome `counts_as_right`. A keeping question also has `<metric>_right`: the true answer is
    given. The edit's prompt also has `old_answer`: target_true is given. "Unchanged" is trivial for base and omitted.
    """
    outcomes: list[Outcome] = []
    for question, answer, base in zip(questions, answers, before, strict=True):
        case = (question.patch, question.edit)
        if not (question.keeps and mode == "base"):
            right = float(counts_as_right(question, answer, base))
            outcomes += [(metric, case, right) for metric in question.metrics]
        if question.keeps and question.expected is not None:
            still = gives_any(answer, question.accepted, question.rivals)
            outcomes.append((f"{question.metric}_right", case, float(still)))
        if question.metric == RELIABILITY and question.rival:
            outcomes.append(("old_answer", case, float(gives_any(answer, question.rivals, question.accepted))))
    return outcomes


def argmax_outcomes(questions: Sequence[Question], scored: Sequence[Scored | None]) -> list[Outcome]:
    """Whether every token of the expected answer (for keeping metrics the true one) is the argmax."""
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
    """CounterFact's success scores (arXiv 2202.05262, §3.4): the wanted answer has the smaller mean token NLL s.

    ES on the edit's prompt, PS on paraphrases: s(new) < s(true). NS on same-relation neighbours: s(true) < s(new).
    EM, PM and NM are the mean lead of the wanted answer over the other, s(other) − s(wanted), in nats; the paper's
    magnitudes are differences of e^{-s}, which are uninformative where both are near 0.
    """
    outcomes: list[Outcome] = []
    for question, wanted, other in zip(questions, expected, rival, strict=True):
        if wanted is None or other is None or question.metric not in _SUCCESS:
            continue
        case, success = (question.patch, question.edit), _SUCCESS[question.metric]
        outcomes.append((success, case, float(wanted.nll < other.nll)))
        outcomes.append((_MARGIN[success], case, other.nll - wanted.nll))
    return outcomes


def shift_outcomes(questions: Sequence[Question], scored: Pair, before: Pair) -> list[Outcome]:
    """Shifts of the neighbours' scores from base's (`before`), by question: NM_shift in nats, NS_shift."""
    outcomes: list[Outcome] = []
    for question, wanted, other, wanted_before, other_before in zip(questions, *scored, *before, strict=True):
        if question.metric != "locality" or not (wanted and other and wanted_before and other_before):
            continue
        case = (question.patch, question.edit)
        lead, lead_before = other.nll - wanted.nll, other_before.nll - wanted_before.nll
        outcomes.append(("NM_shift", case, lead - lead_before))
        outcomes.append(("NS_shift", case, float(lead > 0) - float(lead_before > 0)))
    return outcomes


def refusals(questions: Iterable[Question], protocol: Protocol) -> list[Outcome]:
    """The outcomes of questions whose edit was refused: 0 in every metric that needs the edit.

    Keeping metrics, `old_answer`, EM and PM are left out: a refused edit harms nothing, and counting that as locality
    would reward refusals.
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
        elif question.rival is not None and question.metric in _SUCCESS:
            failed.append((_SUCCESS[question.metric], case, 0.0))
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
            if question.expected and question.rival and question.metric in _SUCCESS:
                failed.append((_SUCCESS[question.metric], case, 0.0))
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
    parts = {name: cases for name, cases in by_metric.items() if name in _MARGIN}
    if len(parts) == 3:
        measures.append(_score(parts, mode, protocol, sum(failed[name] for name in parts)))
    return measures


def harmonic_mean(shares: Sequence[float]) -> float:
    """Harmonic mean, n / Σ 1/share; 0 if any share is 0."""
    return len(shares) / sum(1 / share for share in shares) if all(shares) else 0.0


def mean_interval(cases: Mapping[Case, Sequence[float]]) -> Resampled:
    """The interval of the mean over edits of their means, by resampling edits; of one edit, by resampling questions."""
    means = [sum(values) / len(values) for values in cases.values()]
    return bootstrap(means if len(means) > 1 else next(iter(cases.values())))


def _score(
    parts: Mapping[str, Mapping[Case, Sequence[float]]], mode: Mode, protocol: Protocol, refused: int
) -> Measure:
    """S, the harmonic mean of ES, PS and NS; its interval by resampling edits with all their questions.

    Of one edit each metric's own questions are resampled.
    """
    means = {name: {case: sum(values) / len(values) for case, values in own.items()} for name, own in parts.items()}
    cases = list(dict.fromkeys(case for own in means.values() for case in own))

    def score(drawn: Sequence[int]) -> float | None:
        averages = []
        for own in means.values():
            values = [own[cases[place]] for place in drawn if cases[place] in own]
            if not values:
                return None
            averages.append(sum(values) / len(values))
        return harmonic_mean(averages)

    if len(cases) > 1:
        low, high = resampled(len(cases), score)
    else:
        low, high = resampled_means([values for own in parts.values() for values in own.values()], harmonic_mean)
    return Measure(
        mode=mode,
        metric="S",
        protocol=protocol,
        value=score(range(len(cases))) or 0.0,
        low=low,
        high=high,
        interval="bootstrap" if low is not None else None,
        n=sum(len(values) for own in parts.values() for values in own.values()),
        edits=len(cases),
        refused=refused,
    )


def _measure(
    metric: str, cases: Mapping[Case, Sequence[float]], mode: Mode, protocol: Protocol, refused: int
) -> Measure:
    means = [sum(values) / len(values) for values in cases.values()]
    value, n = sum(means) / len(means), sum(map(len, cases.values()))
    low, high = mean_interval(cases) if metric in NATS else wilson(value, len(means) if len(means) > 1 else n)
    return Measure(
        mode=mode,
        metric=metric,
        protocol=protocol,
        value=value,
        low=low,
        high=high,
        interval=None if low is None else "bootstrap" if metric in NATS else "wilson",
        n=n,
        edits=len(means),
        refused=refused,
    )
