"""From a row's replies to its figures: means over an edit's prompts, then over edits, with 95 % intervals.

Beside what every report measures (`evaluation.measuring`) there are CounterFact's magnitudes as its paper defines them,
old answers to the wordings of paraphrases, neighbours that were answered rightly and still are, and text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.public.text import Read, Written
from vllm_edit.evaluation.evaluate import EvaluationSettings
from vllm_edit.evaluation.intervals import bootstrap, resampled
from vllm_edit.evaluation.judging import gives_any
from vllm_edit.evaluation.measuring import Outcome, mean_interval, summarise
from vllm_edit.evaluation.questions import RELIABILITY
from vllm_edit.evaluation.report import Mode
from vllm_edit.evaluation.reporting import report_of
from vllm_edit.evaluation.sheet import Sheet, with_numbers

SETTINGS = EvaluationSettings(split=None, max_tokens=16, latency=0)
"""Every probe, answered freely and forced."""
_PROBABILITY = {RELIABILITY: "EM_p", "paraphrase": "PM_p", "locality": "NM_p"}


@dataclass(frozen=True)
class Figure:
    """One number. n: the prompts that it is over. edits: the edits that its interval is over; for drift, the patches.

    low, high: None where it has no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    edits: int = 0

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def figures(sheets: Sequence[Sheet], mode: Mode) -> dict[str, Figure]:
    """Every figure of a mode that the sheets, which hold base's replies too, allow.

    Names are the report's, with `<metric>:<tag>` for one kind of probes, and besides: EM_p, PM_p, NM_p (differences of
    e^{-s}), paraphrase_old, paraphrase_elicited, <keeping metric>_kept, argmax:<metric> for teacher-forced shares.
    """
    report = report_of(sheets, [mode], SETTINGS, "")
    found: dict[str, Figure] = {}
    for measure in report.measures:
        name = f"argmax:{measure.metric}" if measure.protocol == "argmax" else measure.metric
        found[name] = Figure(measure.value, measure.low, measure.high, measure.n, measure.edits)
    for measure in summarise(_of_base_knowledge(sheets, mode), mode, "generation"):
        found[measure.metric] = Figure(measure.value, measure.low, measure.high, measure.n, measure.edits)
    magnitudes = _magnitudes(sheets, mode)
    for name in dict.fromkeys(name for name, _, _ in magnitudes):
        found[name] = _mean([outcome for outcome in magnitudes if outcome[0] == name])
    return found


def _magnitudes(sheets: Sequence[Sheet], mode: Mode) -> list[Outcome]:
    """EM, PM and NM of arXiv 2202.05262: e^{-s(wanted)} − e^{-s(other)}, s the mean token NLL."""
    outcomes: list[Outcome] = []
    for question, replies in with_numbers(sheets):
        reply = replies[mode]
        if question.metric in _PROBABILITY and reply.expected is not None and reply.rival is not None:
            difference = math.exp(-reply.expected.nll) - math.exp(-reply.rival.nll)
            outcomes.append((_PROBABILITY[question.metric], (question.patch, question.edit), difference))
    return outcomes


def _of_base_knowledge(sheets: Sequence[Sheet], mode: Mode) -> list[Outcome]:
    """The answers that depend on what base answers.

    paraphrase_old: a paraphrase gets the old answer. paraphrase_elicited: of the paraphrases to which base gives the
    old answer, those that get the new one. <keeping metric>_kept: of the questions that base answers rightly, those
    that are still answered rightly.
    """
    outcomes: list[Outcome] = []
    for question, replies in with_numbers(sheets):
        text, before = replies[mode].text, replies["base"].text
        case = (question.patch, question.edit)
        if text is None or before is None:
            continue
        if question.metric == "paraphrase" and question.rival:
            outcomes.append(("paraphrase_old", case, float(gives_any(text, question.rivals, question.accepted))))
            if gives_any(before, question.rivals, question.accepted):
                new = gives_any(text, question.accepted, question.rivals)
                outcomes.append(("paraphrase_elicited", case, float(new)))
        if question.keeps and gives_any(before, question.accepted, question.rivals):
            kept = float(gives_any(text, question.accepted, question.rivals))
            names = [f"{question.metric}_kept", *([f"{question.metric}_kept:{question.tag}"] if question.tag else [])]
            outcomes += [(name, case, kept) for name in names]
    return outcomes


def _mean(outcomes: Sequence[Outcome]) -> Figure:
    """The mean over each edit's prompts, then over edits, with its interval."""
    cases: dict[tuple[int, int], list[float]] = {}
    for _, case, value in outcomes:
        cases.setdefault(case, []).append(value)
    means = [sum(values) / len(values) for values in cases.values()]
    low, high = mean_interval(cases)
    return Figure(sum(means) / len(means), low, high, len(outcomes), len(means))


def text_figures(texts: Sequence[Written], readings: Sequence[Read]) -> dict[str, Figure]:
    """The figures of texts.

    fluency: mean n-gram entropy of the written texts. fluency_shift: the same minus that of base's texts, which were
    sampled with the same random numbers. drift: relative change of the perplexity of all texts that were read; its
    interval is over the patches.
    """
    found: dict[str, Figure] = {}
    if texts:
        fluency = [text.entropy for text in texts]
        shifts = [text.entropy - text.entropy_base for text in texts]
        for name, values in {"fluency": fluency, "fluency_shift": shifts}.items():
            low, high = bootstrap(values)
            found[name] = Figure(sum(values) / len(values), low, high, len(values), len(values))
    read = [reading for reading in readings if reading.tokens]
    if read:

        def drift(drawn: Sequence[int]) -> float:
            tokens = sum(read[place].tokens for place in drawn)
            return math.exp(sum(read[place].nll - read[place].nll_base for place in drawn) / tokens) - 1

        low, high = resampled(len(read), drift)
        found["drift"] = Figure(drift(range(len(read))), low, high, sum(reading.tokens for reading in read), len(read))
    return found
