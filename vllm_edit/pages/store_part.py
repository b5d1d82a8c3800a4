"""What is recorded in a store, for a page: its patches with their gates and evaluations, and its rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle

from markupsafe import Markup

from vllm_edit import names
from vllm_edit.artefacts.reports import GateReport
from vllm_edit.errors import Corrupt
from vllm_edit.evaluation.report import Mode, Report
from vllm_edit.pages.charts import Value, bars, lines
from vllm_edit.pages.drawing import SERIES
from vllm_edit.pages.evaluation_part import (
    COMPARED,
    METRICS,
    MODE_COLOURS,
    EvaluationPart,
    as_value,
    cost_charts,
    evaluation_part,
)
from vllm_edit.pages.html_table import HTMLTable
from vllm_edit.pages.rollout_part import RolloutPart, rollout_part
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.store.records import Record
from vllm_edit.store.store import Store
from vllm_edit.text.counting import counted

_COMPARED = 20
"""Most patches of a chart, the newest."""


@dataclass(frozen=True)
class Stored:
    """A patch with the latest of its reports.

    Attributes:
        entry: the registry's entry.
        method: the editing method; of a composition, `composition`.
        edits, rank: number of edits, rank of the adapter.
        tenants: the tenants that are served it.
        gate: the gate's measurements.
        verdict: the gate's verdict.
        evaluation: the last evaluation by `vllm-edit eval`.
        judged_at, evaluated_at: times of the two records.
    """

    entry: PatchEntry
    method: str
    edits: int
    rank: int
    tenants: Sequence[str]
    gate: Report | None = None
    verdict: GateReport | None = None
    evaluation: Report | None = None
    judged_at: datetime | None = None
    evaluated_at: datetime | None = None

    @property
    def measured(self) -> Report | None:
        """The evaluation, which asks more; else the gate's measurements."""
        return self.evaluation or self.gate


@dataclass(frozen=True)
class Section:
    """A patch, or a file with an evaluation. `title`: the name with a short digest; `lines`: verdicts and times."""

    key: str
    title: str
    name: str
    lines: Sequence[str]
    failures: Sequence[str]
    part: EvaluationPart | None


@dataclass(frozen=True)
class StorePart:
    """What the template shows of a store.

    Attributes:
        title: the store.
        summary: sentences.
        overview: all patches.
        methods: name of each method's colour.
        comparisons: charts: the patches' metrics.
        sizes: charts: quality by number of edits, one line for each method.
        costs: charts: quality against latency and tokens, for all patches.
        patches, files: one section for each.
        patches_left: number of patches without a section.
        rollouts: title and content of each rollout.
    """

    title: str
    summary: Sequence[str]
    overview: HTMLTable
    methods: Mapping[str, str]
    comparisons: Sequence[Markup]
    sizes: Sequence[Markup]
    costs: Sequence[Markup]
    patches: Sequence[Section]
    patches_left: int
    files: Sequence[Section]
    rollouts: Sequence[tuple[str, RolloutPart]]


def store_part(store: Store, files: Mapping[str, Report], most: int) -> StorePart:
    """Read a store's records for its page.

    Args:
        store: the store.
        files: further reports by name, as `vllm-edit eval --json` prints them.
        most: most patches, and most rollouts, with a section; the newest.

    Raises:
        Corrupt: a record cannot be read; the message names it.
    """
    served = store.registry.served_to()
    listed = store.names()
    found = [_stored(store, name, served.get(name, [])) for name in listed]
    shown = [stored for stored in found if stored.measured is not None][:_COMPARED]
    methods = dict(zip(dict.fromkeys(stored.method for stored in found), cycle(SERIES), strict=False))
    rollouts = store.registry.rollouts.newest_first()
    return StorePart(
        title=store.url,
        summary=list(_summary(store, found, [entry.rollout.state for entry in rollouts])),
        overview=_overview(found),
        methods=methods,
        comparisons=_comparisons(shown),
        sizes=_sizes(found, methods),
        costs=_costs(shown),
        patches=[_section(stored, f"patch-{place}") for place, stored in enumerate(found[:most])],
        patches_left=len(found[most:]),
        files=[
            Section(f"file-{place}", name, name, [], [], evaluation_part(report, f"file-{place}"))
            for place, (name, report) in enumerate(files.items())
        ],
        rollouts=[
            (entry.rollout.name, rollout_part(store.registry.rollouts.report(entry.rollout.name), f"rollout-{place}"))
            for place, entry in enumerate(rollouts[:most])
        ],
    )


def _stored(store: Store, name: str, tenants: Sequence[str]) -> Stored:
    manifest = store.manifest(name)
    gate, report = _last(store.records(name, "gate")), _last(store.records(name, "report"))
    return Stored(
        entry=store.entry(name),
        method="composition" if manifest.kind == "composition" else manifest.method,
        edits=len(manifest.edits),
        rank=manifest.rank,
        tenants=tenants,
        gate=_report(gate) if gate and "measures" in gate.data else None,
        verdict=_verdict(gate) if gate else None,
        evaluation=_report(report) if report else None,
        judged_at=gate.at if gate else None,
        evaluated_at=report.at if report else None,
    )


def _last(records: Sequence[Record]) -> Record | None:
    return records[-1] if records else None


def _report(record: Record) -> Report:
    try:
        return Report.of(record.data)
    except Corrupt as error:
        raise Corrupt(f"the last {record.kind} record of {record.name}: {error}") from error


def _verdict(record: Record) -> GateReport | None:
    """The verdict of a gate with the model; None for what algebra says about a composition made on demand."""
    return GateReport.of(record.data) if record.data.get("judged_by", "model") == "model" else None


def _summary(store: Store, found: Sequence[Stored], rollouts: Sequence[str]) -> Iterator[str]:
    site = store.site()
    holds = counted(len(found), "patch", "patches")
    yield f"The store holds {holds} of {site.model}, layer {site.layer}."
    gates = Counter(stored.entry.status for stored in found)
    if found:
        yield f"Gates: {', '.join(f'{count} {status}' for status, count in sorted(gates.items()))}."
    states = ", ".join(f"{count} {state}" for state, count in sorted(Counter(rollouts).items()))
    running = f"{counted(len(rollouts), 'rollout')}{f' ({states})' if states else ''}"
    yield f"It has {counted(len(store.registry.tenants()), 'tenant')} and {running}."


def _overview(found: Sequence[Stored]) -> HTMLTable:
    rows = []
    for stored in found:
        entry, saved = stored.entry, _day(stored.entry.saved_at)
        served = ", ".join(stored.tenants) or "–"
        rows.append(
            (names.short(entry.name), stored.method, entry.status, saved, served, stored.edits, stored.rank,
             *_headline(stored.measured))
        )  # fmt: skip
    columns = ("patch", "method", "gate", "saved", "served to", "edits", "rank", *COMPARED)
    return HTMLTable("patches, the newest first; shares in mode weights", columns, rows, words=5)


def _headline(report: Report | None) -> tuple[str, str, str]:
    found = [report.find(metric, "weights") if report else None for metric in COMPARED]
    reliability, paraphrase, locality = ("–" if measure is None else f"{measure.value:.3f}" for measure in found)
    return reliability, paraphrase, locality


def _comparisons(shown: Sequence[Stored]) -> list[Markup]:
    """Each metric of all patches, in modes weights and ike."""
    if len(shown) < 2:
        return []
    charts = []
    modes: tuple[Mode, ...] = ("weights", "ike")
    for metric in METRICS:
        rows: dict[str, Mapping[str, Value]] = {}
        for stored in shown:
            report = stored.measured
            row: dict[str, Value] = {
                mode: as_value(found) for mode in modes if report and (found := report.find(metric, mode))
            }
            if row:
                rows[f"{names.short(stored.entry.name)}, {stored.method}"] = row
        if rows:
            charts.append(bars(f"store-{metric}", metric, rows, MODE_COLOURS))
    return charts


def _sizes(found: Sequence[Stored], methods: Mapping[str, str]) -> list[Markup]:
    """Quality in mode weights by number of edits; of two patches with a method and a number, the newer."""
    if len({stored.edits for stored in found if stored.measured}) < 2:
        return []
    charts = []
    for metric in METRICS:
        series: dict[str, dict[float, Value]] = {}
        for stored in reversed(found):  # the newest last
            measure = stored.measured.find(metric, "weights") if stored.measured else None
            if measure:
                series.setdefault(stored.method, {})[float(stored.edits)] = as_value(measure)
        if series:
            ordered = {method: sorted(points.items(), key=lambda point: point[0]) for method, points in series.items()}
            charts.append(lines(f"store-sizes-{metric}", metric, "edits of a patch", ordered, methods))
    return charts


def _costs(shown: Sequence[Stored]) -> list[Markup]:
    reports = [stored.evaluation for stored in shown if stored.evaluation]
    return cost_charts(reports, "store") if len(reports) > 1 else []


def _section(stored: Stored, key: str) -> Section:
    lines = [f"{counted(stored.edits, 'edit')} by {stored.method}, rank {stored.rank}; gate: {stored.entry.status}."]
    if stored.judged_at:
        lines.append(f"Judged on {_day(stored.judged_at)}.")
    if stored.evaluated_at:
        lines.append(f"Evaluated on {_day(stored.evaluated_at)}: the measures below.")
    elif stored.gate:
        lines.append("Not evaluated: the measures below are those of its gate.")
    if stored.verdict and stored.verdict.not_judged:
        lines.append(f"The gate has no probes for: {stored.verdict.not_judged}.")
    failures = stored.verdict.failures if stored.verdict else ()
    part = evaluation_part(stored.measured, key) if stored.measured else None
    return Section(key, names.short(stored.entry.name), stored.entry.name, lines, failures, part)


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
