"""A rollout's log: exposures (an arm answered a request) and outcomes (a metric's value for that answer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import nearest, shown
from vllm_edit.rollout.arm import Side
from vllm_edit.rollout.assignment import Assignment
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.rollout import Rollout


class UnknownAnswer(NotFound):
    """No rollout decided an answer of this id, or its exposure is not written yet."""


@dataclass(frozen=True)
class Exposure:
    """One request that a rollout decided. `id` is the router's; the sticky key appears only as its pseudonym."""

    id: str
    tenant: str
    assignment: Assignment
    at: datetime
    failed: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    cut: bool = False


@dataclass(frozen=True)
class FirstAnswer:
    """A user's first compared answer. cut: it ended at its maximum number of tokens."""

    side: Side
    failed: bool
    cut: bool
    seconds: float | None

    def slower(self, seconds: float) -> bool:
        """True if it took longer than `seconds`, or failed."""
        return self.failed or (self.seconds is not None and self.seconds > seconds)


@dataclass(frozen=True)
class Traffic:
    """One arm's compared requests. `seconds`: the known latencies."""

    requests: int = 0
    units: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: Sequence[float] = ()


@dataclass(frozen=True)
class Observed:
    """A unit's first outcome on a metric; `count` is the number of all its outcomes on that metric."""

    side: Side
    value: float
    count: int = 1


def metric_of(rollout: Rollout, name: str) -> Metric:
    """Return the rollout's metric of this name; metrics are fixed when the rollout is created."""
    names = [metric.name for metric in rollout.metrics]
    if not names:
        raise EditError(f"rollout {rollout.name!r} has no metrics; they are given at its creation: --metric solved")
    if name not in names:
        raise NotFound(
            f"rollout {rollout.name!r} has no metric {shown(name)}; it has {', '.join(names)}", nearest(name, names)
        )
    return rollout.metrics[names.index(name)]
