"""Guardrails: tests of a rollout's limits, and warnings that it should be stopped.

Each limit is a one-sided test of the hypothesis that treatment is at no time worse than control by more than the
limit's margin. It rejects when the lower end of the confidence sequence of the excess is above the margin
(`sequential`; the comparison of the arms is `comparison.compare`). With k limits each test has level alpha / k
(Bonferroni), so the probability that any limit of a harmless treatment is ever exceeded is at most the rollout's alpha,
however often servers look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vllm_edit.rollout.comparison import Comparison, Estimate, compare, last_estimate
from vllm_edit.rollout.limit import ACTIONS, Action, Limit
from vllm_edit.rollout.outcomes import FirstAnswer, Observed
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.sequential import Array, confidence_sequence

IMBALANCED = 100.0
"""Threshold of the e-value: it is ever exceeded with probability at most 1 % if both sides lose requests equally."""


@dataclass(frozen=True)
class LimitResult:
    """The test of a limit on everything observed so far.

    Attributes:
        limit: The limit, as a person writes it.
        action: What is done when it is exceeded.
        margin: By how much treatment may be worse.
        alpha: Error probability of this test.
        treatment: Treatment's mean over users; for `locality` over probes.
        control: Control's mean; None for `locality`, which compares with the base's answers.
        excess: By how much treatment is worse. It is above `low` with probability 1 - alpha at every look.
        exceeded_at: Number of the first user, of both sides, with `low` above the margin; for `locality` of the first
            probe. None if there is none.
    """

    limit: str
    action: Action
    margin: float
    alpha: float
    treatment: Estimate
    control: Estimate | None
    excess: Estimate
    exceeded_at: int | None

    @property
    def exceeded(self) -> bool:
        return self.exceeded_at is not None

    @property
    def summary(self) -> str:
        """The numbers in a line, for the audit and for warnings."""
        arms = f"treatment {_shown(self.treatment)}"
        arms += "" if self.control is None else f", control {_shown(self.control)}"
        low = 0.0 if self.excess.low is None else self.excess.low
        level = 100 * (1 - self.alpha)
        return f"{arms}; treatment is worse by more than {low:.4g} (margin {self.margin:g}, {level:.4g} %)"


@dataclass(frozen=True)
class Evidence:
    """What the limits of a rollout are tested on.

    Attributes:
        first_answers: The first compared answer of each user, in the order of arrival.
        outcomes: By metric, the first outcome of each user, in the order of arrival.
        canaries: For each locality probe that was asked, in order, whether the answer differs from the base's.
    """

    first_answers: Sequence[FirstAnswer] = ()
    outcomes: Mapping[str, Sequence[Observed]] = field(default_factory=dict)
    canaries: Sequence[bool] = ()


def judge(rollout: Rollout, evidence: Evidence) -> tuple[LimitResult, ...]:
    """Test the rollout's limits, in their order."""
    alpha = rollout.alpha / max(1, len(rollout.limits))
    return tuple(_judge(rollout, limit, evidence, alpha) for limit in rollout.limits)


def strictest(results: Sequence[LimitResult]) -> Action:
    """Return the strictest action of the results."""
    return max((result.action for result in results), key=ACTIONS.index)


def _judge(rollout: Rollout, limit: Limit, evidence: Evidence, alpha: float) -> LimitResult:
    level = 2 * alpha  # a confidence sequence gives half of its alpha to each end, and only one end is tested
    if limit.name == "locality":
        path = confidence_sequence(np.asarray(evidence.canaries, dtype=np.float64), 0.0, 1.0, level)
        excess = last_estimate(path, len(evidence.canaries))
        return LimitResult(
            str(limit), limit.action, limit.margin, alpha, excess, None, excess, _exceeded_at(path[1], limit.margin)
        )
    metric = limit.metric(rollout.metrics)
    found = compare(metric, _observed(limit, evidence), rollout.split, level)
    estimate, lower, upper = found.path
    path = (estimate, lower, upper) if metric.better == "lower" else (-estimate, -upper, -lower)
    return LimitResult(
        str(limit),
        limit.action,
        limit.margin,
        alpha,
        found.arms["treatment"],
        found.arms["control"],
        last_estimate(path, found.difference.n),
        _exceeded_at(path[1], limit.margin),
    )


def _observed(limit: Limit, evidence: Evidence) -> Sequence[Observed]:
    answers = evidence.first_answers
    match limit.name:
        case "errors":
            return [Observed(answer.side, float(answer.failed)) for answer in answers]
        case "cut":
            return [Observed(answer.side, float(answer.cut)) for answer in answers]
        case "slower":
            return [Observed(answer.side, float(answer.slower(limit.seconds or 0.0))) for answer in answers]
        case _:
            return evidence.outcomes.get(limit.name, ())


def _exceeded_at(lower: Array, margin: float) -> int | None:
    above = lower > margin
    return int(above.argmax()) + 1 if above.any() else None


def _shown(estimate: Estimate) -> str:
    return f"{0 if estimate.mean is None else estimate.mean:.4g} (n = {estimate.n})"


def warnings(comparisons: Sequence[Comparison], imbalance: float, limits: Sequence[LimitResult] = ()) -> list[str]:
    """Return the reasons for a kill, one line each."""
    found = [
        f"treatment is worse on {comparison.metric.name}, decided after {comparison.decided_at} users: consider a kill"
        for comparison in comparisons
        if comparison.verdict == "worse"
    ]
    found += [f"limit {result.limit} is exceeded: {result.summary}" for result in limits if result.exceeded]
    if imbalance > IMBALANCED:
        found.append(
            "the shares of users on the arms differ from the split: answers of one arm are lost or logged twice, "
            "so no comparison here can be trusted"
        )
    found += [
        f"the shares of users who report {comparison.metric.name} differ from the split: users of one arm report it "
        "less often or later, so the comparison on it cannot be trusted while outcomes drift"
        for comparison in comparisons
        if comparison.imbalance > IMBALANCED
    ]
    return found
