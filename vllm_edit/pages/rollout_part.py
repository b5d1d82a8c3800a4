"""The part of a page that shows a rollout: arms, shares, comparisons with their course, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from markupsafe import Markup

from vllm_edit.pages.charts import Value, bars, course
from vllm_edit.pages.html_table import HTMLTable
from vllm_edit.rollout.arm import SIDES
from vllm_edit.rollout.comparison import Comparison, Estimate
from vllm_edit.rollout.rollout_report import RolloutReport
from vllm_edit.rollout.shadow_report import ShadowReport
from vllm_edit.text.counting import counted

SIDE_COLOURS: Mapping[str, str] = MappingProxyType({side: side for side in SIDES})


@dataclass(frozen=True)
class RolloutPart:
    """What the template shows of a rollout.

    Attributes:
        key: the part's name in the page, the beginning of all its ids.
        summary: sentences.
        warnings: reasons for a kill.
        means, courses: charts: each arm's mean of a metric, and the difference of the arms over time.
        tables: arms, comparisons and sticky shares.
    """

    key: str
    summary: Sequence[str]
    warnings: Sequence[str]
    means: Sequence[Markup]
    courses: Sequence[Markup]
    tables: Sequence[HTMLTable]


def rollout_part(found: RolloutReport, key: str) -> RolloutPart:
    """Prepare a rollout's report for the template.

    Args:
        found: the report.
        key: a name that no other part of the page has, of letters, digits and hyphens.
    """
    return RolloutPart(
        key=key,
        summary=list(_summary(found)),
        warnings=found.warnings,
        means=[
            _means(result, f"{key}-mean-{place}")
            for place, result in enumerate(found.comparisons)
            if any(estimate.n for estimate in result.arms.values())
        ],
        courses=[_course(result, f"{key}-course-{place}") for place, result in enumerate(found.comparisons)],
        tables=[
            _arms(found),
            *([_comparisons(found)] if found.comparisons else []),
            *([_limits(found)] if found.limits else []),
            *([] if found.shadowed is None else _shadows(found.shadowed)),
            _shares(found),
        ],
    )


def _summary(found: RolloutReport) -> Iterator[str]:
    rollout = found.rollout
    state = f"{rollout.state}, and closed" if rollout.closed else rollout.state
    yield (
        f"Rollout {rollout.name} of tenant {rollout.tenant} is {state}: {rollout.share / 100:g} % of the users take "
        f"part, {rollout.split / 100:g} % of them on treatment."
    )
    yield f"Control is {rollout.control}, treatment is {rollout.treatment}."
    if rollout.audience is not None:
        held_out = rollout.audience.holdout / 100
        yield f"It is for the users {rollout.audience} (per cent); {held_out:g} % of all users are in no rollout."
    if rollout.schedule is not None:
        steps = rollout.schedule.as_record()
        due = (
            "its last step is reached" if steps.next_at is None else f"{steps.next:g} % from {steps.next_at:%F %T} UTC"
        )
        held = "" if steps.held is None else f"; limit {steps.held} holds it until the next ramp"
        yield f"Ramp schedule {steps.steps}: {due}{held}."
    if rollout.shadow is not None:
        texts = "with" if rollout.shadow.texts else "without"
        yield f"The other arm repeats {rollout.shadow.share / 100:g} % of the answers, {texts} texts."
    for decision in found.decisions:
        yield (
            f"Limit {decision.result.limit} was exceeded on {decision.at:%F %T} UTC, and {decision.server} acted: "
            f"{decision.result.action}. The numbers were: {decision.result.summary}."
        )
    for result in found.comparisons:
        difference = result.difference
        if difference.mean is None:
            yield f"On {result.metric.name}, nothing is compared yet."
            continue
        verdict = "not decided" if result.verdict == "open" else f"{result.verdict} on treatment"
        since = "" if result.decided_at is None else f", decided after {counted(result.decided_at, 'user')}"
        yield (
            f"On {result.metric.name} ({result.metric.better} is better), the verdict is: {verdict}{since}. Treatment "
            f"minus control is {difference.mean:.4g}, {100 * (1 - result.alpha):.4g} % interval at every look "
            f"{difference.low:.4g} to {difference.high:.4g}."
        )


def _means(result: Comparison, key: str) -> Markup:
    metric = result.metric
    rows: dict[str, Mapping[str, Value]] = {
        side: {side: Value(estimate.mean, estimate.low, estimate.high)}
        for side, estimate in result.arms.items()
        if estimate.mean is not None
    }
    return bars(key, f"{metric.name}: mean of each arm", rows, SIDE_COLOURS, (metric.low, metric.high))


def _course(result: Comparison, key: str) -> Markup:
    estimate, lower, upper = (part.tolist() for part in result.path)
    title = f"{result.metric.name}: treatment − control"
    return course(key, title, "users of both arms", (estimate, lower, upper), result.decided_at)


def _arms(found: RolloutReport) -> HTMLTable:
    rows = []
    for side in SIDES:
        arm, latency = found.traffic[side], found.latency(side)
        median, p95 = (f"{seconds:.3g}" for seconds in latency) if latency else ("–", "–")
        rows.append((side, arm.requests, arm.units, arm.failed, arm.prompt_tokens, arm.completion_tokens, median, p95))
    columns = ("arm", "requests", "users", "failed", "prompt tokens", "answer tokens", "median s", "95 % s")
    return HTMLTable("traffic of the arms", columns, rows)


def _comparisons(found: RolloutReport) -> HTMLTable:
    rows: list[Sequence[object]] = []
    for result in found.comparisons:
        name = result.metric.name
        rows += [(name, side, result.outcomes[side], *_cells(result.arms[side]), "") for side in SIDES]
        rows.append((name, "difference", "", *_cells(result.difference), result.verdict))
    columns = ("metric", "arm", "outcomes", "compared", "mean", "interval at every look", "treatment is")
    return HTMLTable("comparisons", columns, rows, words=2)


def _limits(found: RolloutReport) -> HTMLTable:
    rows = []
    for result in found.limits:
        control = "" if result.control is None else _cells(result.control)[1]
        numbers = (control, _cells(result.treatment)[1], *_cells(result.excess), f"{result.margin:g}")
        rows.append((result.limit, *numbers, found.state_of(result)))
    columns = ("limit", "control", "treatment", "compared", "worse by", "interval at every look", "margin", "state")
    return HTMLTable("limits that act", columns, rows)


def _shadows(found: ShadowReport) -> Iterator[HTMLTable]:
    full = "; enough are compared" if found.full else ""
    caption = f"answers that the other arm repeats the same; {found.dropped} dropped, {found.failed} failed{full}"
    rows = [("all", *_cells(found.same)), ("temperature 0", *_cells(found.greedy))]
    level = f"{100 * (1 - found.alpha):.4g} % interval at every look"
    yield HTMLTable(caption, ("requests", "compared", "same", level), rows)
    if found.examples:
        texts = [(example.answer, example.side, example.control, example.treatment) for example in found.examples]
        columns = ("answer", "client got", "control", "treatment")
        yield HTMLTable("newest answers that differ", columns, texts, words=4)


def _cells(estimate: Estimate) -> tuple[object, str, str]:
    if estimate.mean is None:
        return estimate.n, "–", "–"
    return estimate.n, f"{estimate.mean:.4g}", f"{estimate.low:.4g} to {estimate.high:.4g}"


def _shares(found: RolloutReport) -> HTMLTable:
    """How the sticky hash split the users, against the split that was wanted."""
    rollout = found.rollout
    units = {side: found.traffic[side].units for side in SIDES}
    total = sum(units.values())
    wanted = {"control": 100 - rollout.split / 100, "treatment": rollout.split / 100}
    fixed = list(rollout.overrides.values())
    rows = [
        (side, units[side], f"{100 * units[side] / total:.2f} %" if total else "–", f"{wanted[side]:g} %",
         fixed.count(side))
        for side in SIDES
    ]  # fmt: skip
    order = ", ".join(rollout.sticky.order)
    caption = f"sticky shares, by {order}; evidence against the split (e-value): {found.imbalance:.3g}"
    return HTMLTable(caption, ("arm", "users", "share", "wanted", "fixed users"), rows)
