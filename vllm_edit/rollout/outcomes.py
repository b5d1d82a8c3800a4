"""What is recorded of a rollout: exposures (a request was answered by an arm) and outcomes (what came of it)."""

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
    """No rollout decided an answer of this id, or none that is written yet."""


@dataclass(frozen=True)
class Exposure:
    """One request that a rollout decided. id: what the router issued. It holds the key's pseudonym, never the key."""

    id: str
    tenant: str
    assignment: Assignment
    at: datetime
    failed: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Traffic:
    """One arm's compared requests. seconds: of each whose latency is known."""

    requests: int = 0
    units: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: Sequence[float] = ()


@dataclass(frozen=True)
class Observed:
    """The first outcome that a unit reported of a metric; `count` is how many it reported in all."""

    side: Side
    value: float
    count: int = 1


def metric_of(rollout: Rollout, name: str) -> Metric:
    """The metric that an outcome is of; a rollout's metrics are named when it is made."""
    names = [metric.name for metric in rollout.metrics]
    if not names:
        raise EditError(f"rollout {rollout.name!r} has no metrics; name them when making one: --metric solved")
    if name not in names:
        raise NotFound(
            f"rollout {rollout.name!r} has no metric {shown(name)}; it has {', '.join(names)}", nearest(name, names)
        )
    return rollout.metrics[names.index(name)]
