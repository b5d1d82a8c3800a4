"""A rollout's report as text."""

from __future__ import annotations

from vllm_edit.cli.output import print_fields, print_line, print_table, when
from vllm_edit.names import shown
from vllm_edit.rollout.arm import SIDES
from vllm_edit.rollout.comparison import Estimate
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.rollout_report import RolloutReport
from vllm_edit.rollout.schedule import Schedule
from vllm_edit.rollout.shadow_report import ShadowReport


def print_status(found: RolloutReport) -> None:
    """Print the rollout, its arms' traffic, its comparisons and warnings."""
    rollout = found.rollout
    print_fields(
        {
            "rollout": rollout.name,
            "tenant": rollout.tenant,
            "state": f"{rollout.state}, closed" if rollout.closed else rollout.state,
            "takes part": f"{rollout.share / 100:g} % of the users, {rollout.split / 100:g} % of them on treatment",
            "range": None if rollout.audience is None else f"{rollout.audience} % of the tenant's users",
            "holdout": _holdout(rollout),
            "schedule": _schedule(rollout.schedule),
            "shadow": _shadow(rollout),
            "control": rollout.control,
            "treatment": rollout.treatment,
            "guarded by": found.watched_by if rollout.guarded else None,
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
        since = "" if result.decided_at is None else f", decided after {result.decided_at} users"
        print_line(f"treatment: {result.verdict}{since}")
    if found.limits:
        print_line()
        _print_limits(found)
    if found.shadowed is not None:
        print_line()
        _print_shadowed(found.shadowed)
    for warning in found.warnings:
        print_line()
        print_line(f"warning: {warning}")


def _holdout(rollout: Rollout) -> str | None:
    holdout = 0 if rollout.audience is None else rollout.audience.holdout
    return f"{holdout / 100:g} % of the tenant's users" if holdout else None


def _schedule(schedule: Schedule | None) -> str | None:
    if schedule is None:
        return None
    record = schedule.as_record()
    if record.held is not None:
        return f"{record.steps}; limit {record.held} holds it at {record.share:g} % until the next ramp"
    if record.next_at is None:
        return f"{record.steps}; at its last step"
    return f"{record.steps}; {record.next:g} % from {when(record.next_at)}"


def _shadow(rollout: Rollout) -> str | None:
    if rollout.shadow is None:
        return None
    texts = "with" if rollout.shadow.texts else "without"
    until = "" if rollout.open else "; ended with the rollout"
    return f"{rollout.shadow.share / 100:g} % of the answers, {texts} texts{until}"


def _print_shadowed(found: ShadowReport) -> None:
    rows = [(label, share.n, *_cells(share)) for label, share in (("all", found.same), ("greedy", found.greedy))]
    print_table(("SHADOW", "COMPARED", "SAME", f"{100 * (1 - found.alpha):.4g} % AT EVERY LOOK"), rows)
    full = "; enough are compared, no more are drawn" if found.full else ""
    print_line(f"dropped {found.dropped}, failed {found.failed}{full}")
    tokens = [f"{side} {mean:.4g}" for side, mean in found.tokens.items() if mean is not None]
    if tokens:
        print_line(f"answer tokens on average: {', '.join(tokens)}")
    if found.seconds is not None and found.shadow_seconds is not None:
        print_line(f"median duration: answers {found.seconds:.3g} s, shadows {found.shadow_seconds:.3g} s")
    for example in found.examples:
        print_line(f"{example.answer} (client: {example.side})")
        print_line(f"  control    {shown(example.control)}")
        print_line(f"  treatment  {shown(example.treatment)}")


def _print_limits(found: RolloutReport) -> None:
    rows = []
    for result in found.limits:
        state = found.state_of(result)
        if decision := found.decision_on(result):
            state += f": {result.action} {when(decision.at)} by {decision.server}"
        arms = [_cells(arm)[0] if arm is not None else "" for arm in (result.control, result.treatment)]
        rows.append((result.limit, *arms, *_cells(result.excess), result.excess.n, state))
    level = f"{100 * (1 - found.limits[0].alpha):.4g} % EACH END"
    print_table(("LIMIT", "CONTROL", "TREATMENT", "WORSE BY", level, "COMPARED", "STATE"), rows)


def _cells(estimate: Estimate) -> tuple[str, str]:
    if estimate.mean is None:
        return "", ""
    return f"{estimate.mean:.4g}", f"{estimate.low:.4g} to {estimate.high:.4g}"
