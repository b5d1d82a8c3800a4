"""A rollout's report as text."""

from __future__ import annotations

from vllm_edit.cli.output import print_fields, print_line, print_table
from vllm_edit.rollout.arm import SIDES
from vllm_edit.rollout.comparison import Estimate
from vllm_edit.rollout.rollout_report import RolloutReport


def print_status(found: RolloutReport) -> None:
    """Print the rollout, its arms' traffic, its comparisons and warnings."""
    rollout = found.rollout
    print_fields(
        {
            "rollout": rollout.name,
            "tenant": rollout.tenant,
            "state": f"{rollout.state}, closed" if rollout.closed else rollout.state,
            "takes part": f"{rollout.share / 100:g} % of the users, {rollout.split / 100:g} % of them on treatment",
            "control": rollout.control,
            "treatment": rollout.treatment,
        }
    )
    print_line()
    rows = []
    for side in SIDES:
        arm, latency = found.traffic[side], found.latency(side)
        median, p95 = (f"{seconds:.3g}" for seconds in latency) if latency else ("", "")
        tokens = (arm.prompt_tokens, arm.completion_tokens)
        rows.append((side, arm.requests, arm.units, arm.failed, *tokens, median, p95))
    columns = ("ARM", "REQUESTS", "USERS", "FAILED", "PROMPT TOKENS", "ANSWER TOKENS", "MEDIAN S", "95 % S")
    print_table(columns, rows)
    for result in found.comparisons:
        metric, arms = result.metric, result.arms
        print_line()
        print_line(f"{metric.name}, {metric.low:g} to {metric.high:g}, {metric.better} is better")
        lines = [(side, result.outcomes[side], arms[side].n, *_cells(arms[side])) for side in SIDES]
        difference = ("difference", "", result.difference.n, *_cells(result.difference))
        level = f"{100 * (1 - result.alpha):.4g} % AT EVERY LOOK"
        print_table(("", "OUTCOMES", "COMPARED", "MEAN", level), [*lines, difference])
        since = "" if result.decided_at is None else f", decided after {result.decided_at} comparisons"
        print_line(f"treatment: {result.verdict}{since}")
    for warning in found.warnings:
        print_line()
        print_line(f"warning: {warning}")


def _cells(estimate: Estimate) -> tuple[str, str]:
    if estimate.mean is None:
        return "", ""
    return f"{estimate.mean:.4g}", f"{estimate.low:.4g} to {estimate.high:.4g}"
