"""The part of a page that shows an evaluation: sentences, charts, tables, and the answers before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from markupsafe import Markup

from vllm_edit.evaluation.answer_states import STATES, Cell, State, cell
from vllm_edit.evaluation.questions import CHANGING, KEEPING
from vllm_edit.evaluation.report import MODES, PROTOCOLS, Answer, Measure, Mode, Report
from vllm_edit.evaluation.table import drift_text, measure_text
from vllm_edit.names import short
from vllm_edit.pages.charts import Point, Value, bars, lines, scatter
from vllm_edit.pages.html_table import HTMLTable
from vllm_edit.text.counting import counted

METRICS = (*CHANGING, *KEEPING)
"""The metrics with charts. Tables show all."""
MODE_COLOURS: Mapping[str, str] = MappingProxyType({mode: mode for mode in MODES})
COMPARED = ("reliability", "paraphrase", "locality")
"""The metrics of summaries and of quality against cost."""
_SAYS: Mapping[str, str] = MappingProxyType(
    {
        "reliability": "of the edited prompts get the new answer",
        "paraphrase": "of the other wordings follow",
        "locality": "of the neighbours keep their answer",
    }
)
_RELATIONS = 20
"""Most relations of a chart: those with the most edits."""
_EDITS = 200
"""Most edits whose answers are shown."""


@dataclass(frozen=True)
class Row:
    """A question with its answers, one for each mode that is shown; None where the mode has no answer."""

    answer: Answer
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class EditAnswers:
    """An edit's questions. `wrong`: number of questions that a mode answers not as wanted."""

    patch: str
    edit: int
    subject: str
    relation: str
    rows: Sequence[Row]
    wrong: int


@dataclass(frozen=True)
class EvaluationPart:
    """What the template shows of a report.

    Attributes:
        key: the part's name in the page, the beginning of all its ids.
        summary: sentences.
        modes: the measured modes.
        metrics, relations, sizes, costs: charts.
        relations_left: number of relations that the charts leave out.
        tables: all measures and costs.
        notes: refusals and limits, one line each.
        columns: the modes of the answers.
        edits: the answers, by edit; those with wrong answers first.
        edits_left: number of edits whose answers are left out.
        states: the states of answers with their meanings.
    """

    key: str
    summary: Sequence[str]
    modes: Sequence[Mode]
    metrics: Sequence[Markup]
    relations: Sequence[Markup]
    relations_left: int
    sizes: Sequence[Markup]
    costs: Sequence[Markup]
    tables: Sequence[HTMLTable]
    notes: Sequence[str]
    columns: Sequence[Mode]
    edits: Sequence[EditAnswers]
    edits_left: int
    states: Mapping[State, str]


def evaluation_part(report: Report, key: str) -> EvaluationPart:
    """Prepare a report for the template.

    Args:
        report: the report; without answers, the part shows none.
        key: a name that no other part of the page has, of letters, digits and hyphens.
    """
    edited: list[Mode] = [mode for mode in report.modes if mode != "base"]
    modes = edited or list(report.modes)
    most = sorted(report.relations, key=lambda relation: -_edits(report.relations[relation]))[:_RELATIONS]
    edits = sorted(_by_edit(report), key=lambda found: not found.wrong)
    return EvaluationPart(
        key=key,
        summary=list(_summary(report)),
        modes=report.modes,
        metrics=_metric_charts(report, key),
        relations=_relation_charts(report, modes, most, key) if len(report.relations) > 1 else [],
        relations_left=len(report.relations) - len(most),
        sizes=_size_charts(report, modes, key),
        costs=cost_charts([report], key),
        tables=list(_tables(report)),
        notes=list(_notes(report)),
        columns=_columns(report),
        edits=edits[:_EDITS],
        edits_left=len(edits[_EDITS:]),
        states=STATES,
    )


def title_of(report: Report) -> str:
    """The patch's name, with a short digest, or the number of patches."""
    if len(report.patches) > 1:
        return f"{len(report.patches)} patches"
    (patch,) = report.patches
    return short(patch) if "@" in patch else patch


def as_value(measure: Measure) -> Value:
    return Value(measure.value, measure.low, measure.high)


def generated(measures: Sequence[Measure], metric: str, mode: Mode) -> Measure | None:
    """The measure of a metric by free generation."""
    wanted = (metric, mode, "generation")
    return next((found for found in measures if (found.metric, found.mode, found.protocol) == wanted), None)


def summary_of(report: Report, mode: Mode) -> str:
    """One sentence with the mode's shares; empty if none of the metrics was measured."""
    said = []
    for metric in COMPARED:
        if measure := report.find(metric, mode):
            between = "" if measure.low is None or measure.high is None else (
                f" (95 % interval {100 * measure.low:.0f} to {100 * measure.high:.0f} %)"
            )  # fmt: skip
            said.append(f"{100 * measure.value:.1f} % {_SAYS[metric]}{between}")
    return f"In mode {mode}, {'; '.join(said)}." if said else ""


def _summary(report: Report) -> Iterator[str]:
    what = report.patches[0] if len(report.patches) == 1 else f"{len(report.patches)} patches"
    by = f" by {', '.join(report.methods)}" if report.methods else ""
    asked = f"{report.split} probes" if report.split else "all probes"
    yield f"{what}: {counted(report.edits, 'edit')}{by}, {asked}, asked through {report.engine}."
    for mode in report.modes:
        if sentence := summary_of(report, mode):
            yield sentence
    latency = {cost.mode: cost.latency_s for cost in report.costs}
    for cost in report.costs:
        alone, before = cost.latency_s, latency.get("base")
        if cost.mode != "base" and alone is not None and before is not None:
            yield (
                f"Mode {cost.mode} adds {cost.tokens_added:.0f} tokens to a prompt, and a single answer takes "
                f"{1000 * alone:.0f} ms, against {1000 * before:.0f} ms of base."
            )


def _metric_charts(report: Report, key: str) -> list[Markup]:
    charts = []
    for metric in METRICS:
        rows: dict[str, Mapping[str, Value]] = {
            mode: {mode: as_value(measure)} for mode in report.modes if (measure := report.find(metric, mode))
        }
        if rows:
            charts.append(bars(f"{key}-{metric}", metric, rows, MODE_COLOURS))
    return charts


def _relation_charts(report: Report, modes: Sequence[Mode], relations: Sequence[str], key: str) -> list[Markup]:
    charts = []
    for metric in METRICS:
        rows: dict[str, Mapping[str, Value]] = {}
        for relation in relations:
            measures = report.relations[relation]
            row: dict[str, Value] = {
                mode: as_value(found) for mode in modes if (found := generated(measures, metric, mode))
            }
            if row:
                rows[relation] = row
        if rows:
            charts.append(bars(f"{key}-relations-{metric}", f"{metric} by relation", rows, MODE_COLOURS))
    return charts


def _size_charts(report: Report, modes: Sequence[Mode], key: str) -> list[Markup]:
    charts = []
    for metric in METRICS:
        series: dict[str, list[tuple[float, Value]]] = {
            mode: [
                (float(size), as_value(measure))
                for size, measures in report.sizes.items()
                if (measure := generated(measures, metric, mode))
            ]
            for mode in modes
        }
        given = {mode: points for mode, points in series.items() if points}
        if given:
            charts.append(lines(f"{key}-sizes-{metric}", metric, "edits of a patch", given, MODE_COLOURS))
    return charts


def cost_charts(reports: Sequence[Report], key: str) -> list[Markup]:
    """Quality against latency, and against tokens.

    Args:
        reports: the reports; their points share the charts.
        key: the beginning of the charts' names in the page.
    """
    latency: list[Point] = []
    tokens: list[Point] = []
    for report in reports:
        for cost in report.costs:
            for metric in COMPARED:
                if measure := report.find(metric, cost.mode):
                    tokens.append(Point(cost.mode, metric, cost.tokens_added, as_value(measure)))
                    if cost.latency_s is not None:
                        latency.append(Point(cost.mode, metric, 1000 * cost.latency_s, as_value(measure)))
    charts = []
    for name, label, points in (
        ("latency", "ms of a single answer (median)", latency),
        ("tokens", "tokens added to a prompt (mean)", tokens),
    ):
        if points:
            charts.append(scatter(f"{key}-{name}", f"quality against {name}", label, points, MODE_COLOURS))
    return charts


def _tables(report: Report) -> Iterator[HTMLTable]:
    for protocol, meaning in PROTOCOLS.items():
        measures = [measure for measure in report.measures if measure.protocol == protocol]
        if measures:
            yield _measures_table(f"{protocol}: {meaning}", measures, report.modes)
    if report.costs:
        rows = [
            (cost.mode, f"{cost.tokens_added:.1f}", f"{1000 * cost.seconds_per_answer:.1f}",
             "–" if cost.latency_s is None else f"{1000 * cost.latency_s:.1f}")
            for cost in report.costs
        ]  # fmt: skip
        yield HTMLTable("cost of an answer", ("mode", "tokens added", "ms in batches", "ms alone (median)"), rows)
    for relation, own in report.relations.items() if len(report.relations) > 1 else ():
        yield _measures_table(f"relation {relation or '–'}", own, report.modes)


def _measures_table(caption: str, measures: Sequence[Measure], modes: Sequence[Mode]) -> HTMLTable:
    """One row for each metric, one column for each mode."""
    rows = []
    for metric in dict.fromkeys(measure.metric for measure in measures):
        found = {measure.mode: measure for measure in measures if measure.metric == metric}
        rows.append(
            (metric, max(measure.n for measure in found.values()), *(measure_text(found.get(m)) for m in modes))
        )
    return HTMLTable(caption, ("metric", "n", *modes), rows)


def _notes(report: Report) -> Iterator[str]:
    if report.drift is not None:
        yield drift_text(report.drift)
    for metric, count in report.not_asked.items():
        yield f"{counted(count, 'probe')} of {metric} not asked: another edit of the patch changes the answer"
    for name, reason in report.refused.items():
        yield f"refused: {name} was not compiled, and fails every metric that needs the edit: {reason}"
    for name, prompts in report.unserved.items():
        for prompt, reason in prompts.items():
            yield f"refused: a server answers the prompt {prompt!r} of {name} with an error: {reason}"
    if report.left_out:
        first = report.left_out[0]
        yield f"records that are not edits: {len(report.left_out)}, the first record {first.index}: {first.reason}"
    if report.unjudged:
        yield f"the gate has no probes for: {report.not_judged}"


def _columns(report: Report) -> list[Mode]:
    return [mode for mode in MODES if mode in report.modes or mode == "base"]


def _by_edit(report: Report) -> list[EditAnswers]:
    answers: dict[tuple[str, int], list[Answer]] = {}
    for answer in report.answers or ():
        answers.setdefault((answer.patch, answer.edit), []).append(answer)
    found = []
    for (patch, edit), own in answers.items():
        rows = [Row(answer, [cell(answer, mode) for mode in _columns(report)]) for answer in own]
        wrong = sum(any(part is None or part.state in ("missed", "damaged") for part in row.cells) for row in rows)
        found.append(EditAnswers(patch, edit, own[0].subject, own[0].relation, rows, wrong))
    return found


def _edits(measures: Sequence[Measure]) -> int:
    return max((measure.edits for measure in measures), default=0)
