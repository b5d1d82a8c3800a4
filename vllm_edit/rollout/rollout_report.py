"""A rollout's report: traffic, comparisons and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from vllm_edit.rollout.arm import SIDES, Side
from vllm_edit.rollout.buckets import BUCKETS
from vllm_edit.rollout.comparison import Comparison, Summary, compare
from vllm_edit.rollout.decided import Decision
from vllm_edit.rollout.guardrails import Evidence, LimitResult, judge, warnings
from vllm_edit.rollout.outcomes import Traffic
from vllm_edit.rollout.rollout import Rollout, RolloutRecord
from vllm_edit.rollout.sequential import imbalance
from vllm_edit.rollout.shadow_report import ShadowReport

QUANTILES = (0.5, 0.95)


@dataclass(frozen=True)
class RolloutReport:
    """A rollout's report.

    Attributes:
        rollout: The rollout.
        traffic: The compared requests, by side.
        comparisons: One comparison per metric.
        imbalance: Evidence (an e-value) that the numbers of units do not follow the rollout's split.
        limits: The tests of its limits.
        decisions: What servers did because of its limits, the oldest first.
        watched_by: The server (host:pid) that tests limits and follows schedules now; None if no server does.
        shadowed: Answers that the other arm repeated; None if none was ever drawn.
        expired: The sides whose arm has expired while two arms should be served.
    """

    rollout: Rollout
    traffic: Mapping[Side, Traffic]
    comparisons: tuple[Comparison, ...]
    imbalance: float
    limits: tuple[LimitResult, ...] = ()
    decisions: tuple[Decision, ...] = ()
    watched_by: str | None = None
    shadowed: ShadowReport | None = None
    expired: tuple[Side, ...] = ()

    @property
    def warnings(self) -> list[str]:
        found = warnings(self.comparisons, self.imbalance, self.limits)
        for side in self.expired:
            arm = self.rollout.arm(side)
            found.append(
                f"{side} {arm.short} expired at {arm.valid_until:%F %T} UTC: all users get the published patch, "
                "nothing is compared any more, and no schedule advances; kill the rollout"
            )
        if self.rollout.guarded and self.watched_by is None:
            found.append("no server tests the limits or follows the schedule now; start one (vllm-edit serve)")
        return found

    def decision_on(self, result: LimitResult) -> Decision | None:
        """Return what a server last did because this limit was exceeded; None if no server acted on it."""
        return next((decision for decision in reversed(self.decisions) if decision.result.limit == result.limit), None)

    def state_of(self, result: LimitResult) -> str:
        """Return a limit's state in one word: holds, exceeded, or acted (exceeded, and a server acted on it)."""
        if self.decision_on(result):
            return "acted"
        return "exceeded" if result.exceeded else "holds"

    def latency(self, side: Side) -> tuple[float, ...] | None:
        """Return the median and the 95 % quantile of an arm's latency in seconds; None without data."""
        seconds = self.traffic[side].seconds
        return tuple(float(value) for value in np.quantile(seconds, QUANTILES)) if seconds else None

    def as_record(self) -> ReportRecord:
        return ReportRecord(
            **vars(self.rollout.as_record()),
            arms={side: self._arm(side) for side in SIDES},
            comparisons=tuple(comparison.summary for comparison in self.comparisons),
            imbalance=self.imbalance,
            warnings=tuple(self.warnings),
            limit_tests=self.limits,
            decisions=self.decisions,
            watched_by=self.watched_by,
            shadowed=self.shadowed,
        )

    def _arm(self, side: Side) -> ArmRecord:
        latency = self.latency(side)
        return ArmRecord(**vars(self.traffic[side]) | {"seconds": Latency(*latency) if latency else None})


@dataclass(frozen=True)
class Latency:
    """Quantiles of an arm's latency, in seconds."""

    median: float
    p95: float


@dataclass(frozen=True)
class ArmRecord:
    """An arm's `Traffic` as JSON shows it."""

    requests: int
    units: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: Latency | None


@dataclass(frozen=True)
class ReportRecord(RolloutRecord):
    """A `RolloutReport` as JSON shows it."""

    arms: Mapping[Side, ArmRecord]
    comparisons: tuple[Summary, ...]
    imbalance: float
    warnings: tuple[str, ...]
    limit_tests: tuple[LimitResult, ...]
    decisions: tuple[Decision, ...]
    watched_by: str | None
    shadowed: ShadowReport | None


def report(
    rollout: Rollout,
    traffic: Mapping[Side, Traffic],
    evidence: Evidence,
    decisions: Sequence[Decision] = (),
    watched_by: str | None = None,
    shadowed: ShadowReport | None = None,
    now: datetime | None = None,
) -> RolloutReport:
    """Evaluate a rollout. Its alpha is divided evenly over its metrics (Bonferroni), so that it covers all of them.

    Args:
        rollout: The rollout.
        traffic: The compared requests, by side.
        evidence: What was observed, in the order of arrival.
        decisions: What servers did because of its limits, the oldest first.
        watched_by: The server that tests limits and follows schedules now.
        shadowed: The answers that the other arm repeated.
        now: The time at which arms may have expired; None for a report that leaves this out.
    """
    sides = {side: traffic.get(side, Traffic()) for side in SIDES}
    treated = sides["treatment"].units
    share = rollout.split / BUCKETS
    alpha = rollout.alpha / max(1, len(rollout.metrics))
    comparisons = tuple(
        compare(metric, evidence.outcomes.get(metric.name, ()), rollout.split, alpha) for metric in rollout.metrics
    )
    suspected = imbalance(treated, treated + sides["control"].units, share)
    limits = judge(rollout, evidence)
    expired = rollout.expired(now) if rollout.running and now is not None else ()
    return RolloutReport(
        rollout, sides, comparisons, suspected, limits, tuple(decisions), watched_by, shadowed, expired
    )
