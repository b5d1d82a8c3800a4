"""Renders a report as tables, one row per metric, one column per mode. Only the CLI prints them."""

from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vllm_edit.datasets import LeftOut
from vllm_edit.evaluation.report import MODES, PROTOCOLS, Cost, Drift, Measure, Mode, Report
from vllm_edit.text.first_line import first_line
from vllm_edit.text.printable import printable


def table(report: Report) -> Group:
    """One table per protocol, then refusals, costs, relations (if there are several) and answers."""
    what = report.patches[0] if len(report.patches) == 1 else f"{len(report.patches)} patches"
    asked = f"{report.split} probes" if report.split else "all probes"
    parts: list[Table | Text] = [
        Text(printable(f"{what}: {report.edits} edits, {asked}, {report.engine}"), style="bold")
    ]
    if report.not_asked:
        counts = ", ".join(f"{count} of {metric}" for metric, count in report.not_asked.items())
        parts.append(Text(f"not asked, since another edit of the patch changes the answer: {counts}"))
    if report.left_out:
        parts.append(_left_out(report.left_out))
    for protocol, meaning in PROTOCOLS.items():
        measures = [measure for measure in report.measures if measure.protocol == protocol]
        if measures:
            parts.append(_by_mode(f"{protocol}: {meaning}", measures, report.modes))
    if report.drift is not None:
        parts.append(Text(printable(drift_text(report.drift))))
    if report.refused:
        parts.append(_refused(report))
    if report.unserved:
        parts.append(_unserved(report))
    if report.costs:
        parts.append(_costs(report.costs))
    if len(report.relations) > 1:
        parts.append(_relations(report))
    if report.answers:
        parts.append(_answers(report))
    return Group(*parts)


def _by_mode(title: str, measures: list[Measure], modes: tuple[Mode, ...]) -> Table:
    shown = Table(title=title, title_justify="left", title_style="dim")
    shown.add_column("metric")
    shown.add_column("n", justify="right")
    for mode in modes:
        shown.add_column(mode, justify="right")
    for metric in dict.fromkeys(measure.metric for measure in measures):
        found = {measure.mode: measure for measure in measures if measure.metric == metric}
        count = str(max(measure.n for measure in found.values()))
        shown.add_row(metric, count, *(escape(measure_text(found.get(mode))) for mode in modes))
    return shown


def measure_text(measure: Measure | None) -> str:
    """A measure with its interval and refusals."""
    if measure is None:
        return "–"
    interval = "" if measure.low is None or measure.high is None else f" [{measure.low:.2f}, {measure.high:.2f}]"
    refused = f", {measure.refused} refused" if measure.refused else ""
    return f"{measure.value:.3f}{interval}{refused}"


def _left_out(records: tuple[LeftOut, ...]) -> Text:
    """The number of records that are not edits, and the reason for the first."""
    first = records[0]
    return Text(
        f"records that are not edits: {len(records)}, the first record {first.index}: {first.reason} (all: --json)"
    )


def _refused(report: Report) -> Table:
    """The refused patches and the reasons."""
    title = "refused: not compiled, so they fail every metric of mode weights that needs the edit"
    shown = Table("patch", "why", title=title, title_justify="left", title_style="dim")
    for name, reason in report.refused.items():
        shown.add_row(escape(name), escape(reason))
    return shown


def _unserved(report: Report) -> Table:
    """The refused prompts and the reasons."""
    title = "refused: prompts that a server answers with an error in mode weights, so they fail"
    shown = Table("patch", "prompt", "why", title=title, title_justify="left", title_style="dim")
    for name, prompts in report.unserved.items():
        for prompt, reason in prompts.items():
            shown.add_row(*map(escape, (name, prompt, reason)))
    return shown


def drift_text(drift: Drift) -> str:
    """The drift as one line."""
    refused = f"; {drift.unserved} refused: {drift.why}" if drift.unserved else ""
    return (
        f"perplexity of {drift.texts} passages ({drift.tokens} tokens): base {drift.base:.3f}, weights "
        f"{drift.edited:.3f}, drift {drift.value:+.2%}{refused}"
    )


def _costs(costs: tuple[Cost, ...]) -> Table:
    shown = Table(title="cost per answer", title_justify="left", title_style="dim")
    for name in ("mode", "tokens added", "ms in batches", "ms alone (median)"):
        shown.add_column(name, justify="left" if name == "mode" else "right")
    for cost in costs:
        alone = f"{1000 * cost.latency_s:.1f}" if cost.latency_s is not None else "–"
        shown.add_row(cost.mode, f"{cost.tokens_added:.1f}", f"{1000 * cost.seconds_per_answer:.1f}", alone)
    return shown


def _relations(report: Report) -> Table:
    """One row per relation and mode; base is left out unless it is the only mode."""
    modes: list[Mode] = [mode for mode in report.modes if mode != "base"] or list(report.modes)
    metrics = ("reliability", "paraphrase", "reverse", "portability", "locality", "locality_subject", "unrelated")
    shown = Table(title="by relation, free generation", title_justify="left", title_style="dim")
    for name in ("relation", "mode", "edits", *metrics):
        shown.add_column(name, justify="left" if name in ("relation", "mode") else "right")
    for relation, measures in sorted(report.relations.items()):
        for mode in modes:
            found = {measure.metric: measure for measure in measures if measure.mode == mode}
            edits = max((measure.edits for measure in found.values()), default=0)
            values = (f"{found[metric].value:.2f}" if metric in found else "–" for metric in metrics)
            shown.add_row(escape(relation) or "–", mode, str(edits), *values)
    return shown


def _answers(report: Report) -> Table:
    """Every answer, base's first; ✓ where it counted as right (locality: as unchanged)."""
    shown = Table("metric", "prompt", "expected", title="answers", title_justify="left", title_style="dim")
    for mode in MODES:
        if mode in report.modes or mode == "base":
            shown.add_column(mode)
    for answer in report.answers or ():
        cells = [
            f"{'✓' if answer.right[mode] else '✗'} {first_line(answer.texts[mode])}"
            if mode in answer.texts
            else "refused"
            for mode in MODES
            if mode in report.modes or mode == "base"
        ]
        prompt = f"{answer.prompt} (chat)" if answer.chat else answer.prompt
        shown.add_row(answer.metric, *map(escape, (prompt, answer.expected or "–", *cells)))
    return shown
