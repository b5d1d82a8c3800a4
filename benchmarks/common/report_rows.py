"""A report as a row of a table: share, count and interval of each metric."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from vllm_edit.evaluation.evaluate import EvaluationSettings
from vllm_edit.evaluation.intervals import wilson
from vllm_edit.evaluation.report import Answer, Mode, Report

COLUMNS = (
    ("reliability", ""),
    ("reliability_chat", ""),
    ("paraphrase", "trained"),
    ("paraphrase", "held_out"),
    ("reverse", ""),
    ("portability", "alias"),
    ("portability", "one_hop"),
    ("locality", ""),
    ("locality", "same_object"),
    ("locality_subject", ""),
    ("unrelated", ""),
)
"""(metric, tag of its probes)."""
NAMES = tuple(f"{metric} {tag}".strip() for metric, tag in COLUMNS)
SETTINGS = EvaluationSettings(teacher_forced=False, latency=0, answers=True)
"""Free generation only, with the answers that rows are made of."""


def row(report: Report, mode: Mode) -> dict[str, Any]:
    """Metric → share, number of probes, and a 95 % Wilson interval in which an edit counts as one observation.

    The share is the mean over an edit's probes, then over edits. The keeping metrics count answers that are what base
    says.
    """
    shown: dict[str, Any] = {}
    for name, (metric, tag) in zip(NAMES, COLUMNS, strict=True):
        answers = selected(report, metric, tag)
        if answers:
            cases: dict[tuple[str, int], list[bool]] = {}
            for answer in answers:
                cases.setdefault((answer.patch, answer.edit), []).append(answer.right[mode])
            share = statistics.fmean(statistics.fmean(right) for right in cases.values())
            low, high = wilson(share, len(cases))
            shown[name] = {"share": share, "low": low, "high": high, "n": len(answers)}
    return shown


def cells(measured: Mapping[str, Any], names: Iterable[str] = NAMES) -> list[str]:
    """A row's shares as a table shows them; a dash where nothing was asked."""
    return [f"{measured[name]['share']:.3f}" if name in measured else "–" for name in names]


def selected(report: Report, metric: str, tag: str) -> list[Answer]:
    """The answers to the metric's probes of that tag."""
    return [answer for answer in report.answers or () if (answer.metric, answer.tag) == (metric, tag)]
