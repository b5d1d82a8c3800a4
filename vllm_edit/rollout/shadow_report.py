"""The comparison of answers with their shadows, for a rollout's report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from vllm_edit.rollout.arm import SIDES, Side
from vllm_edit.rollout.comparison import Estimate, last_estimate
from vllm_edit.rollout.sequential import confidence_sequence
from vllm_edit.rollout.shadow import MOST_COMPARED


@dataclass(frozen=True)
class ShadowPair:
    """An answer and its shadow.

    Attributes:
        answer: The id of the client's answer.
        side: The side that answered the client.
        same: True if both have the same first line, by the gate's comparison.
        greedy: True if the request has temperature 0, so that an arm repeats its answer.
        seconds, shadow_seconds: Durations.
        tokens, shadow_tokens: Generated tokens, if they were reported.
        text, shadow_text: Both texts; None if they are not stored.
    """

    answer: str
    side: Side
    same: bool
    greedy: bool
    seconds: float | None = None
    shadow_seconds: float | None = None
    tokens: int | None = None
    shadow_tokens: int | None = None
    text: str | None = None
    shadow_text: str | None = None

    def tokens_of(self, side: Side) -> int | None:
        return self.tokens if side == self.side else self.shadow_tokens


@dataclass(frozen=True)
class ShadowExample:
    """Two different answers to one request. answer: the id of the client's. side: the side of the client's."""

    answer: str
    at: datetime
    side: Side
    control: str
    treatment: str


@dataclass(frozen=True)
class ShadowReport:
    """A rollout's shadow so far.

    Attributes:
        same: The share of answers that the other arm gave too.
        greedy: The same of requests with temperature 0.
        alpha: Error probability of each of the two intervals.
        dropped: Drawn answers that were not repeated: the server was busy or ended, or there was nothing to compare.
        failed: Answers that the other arm could not repeat.
        full: True if enough are compared, so that none is drawn any more.
        tokens: The mean of generated tokens, by side, over pairs with both numbers known.
        seconds: The median duration of clients' answers.
        shadow_seconds: The median duration of shadows, which mostly have the server to themselves.
        examples: The newest different answers, if texts are stored.
    """

    same: Estimate
    greedy: Estimate
    alpha: float
    dropped: int
    failed: int
    full: bool
    tokens: Mapping[Side, float | None]
    seconds: float | None
    shadow_seconds: float | None
    examples: tuple[ShadowExample, ...]


def shadow_report(
    pairs: Sequence[ShadowPair], dropped: int, failed: int, examples: Iterable[ShadowExample], alpha: float
) -> ShadowReport:
    """Evaluate the pairs, in their order. The intervals are valid at every look if the pairs are independent."""
    return ShadowReport(
        same=_share([pair.same for pair in pairs], alpha),
        greedy=_share([pair.same for pair in pairs if pair.greedy], alpha),
        alpha=alpha,
        dropped=dropped,
        failed=failed,
        full=len(pairs) >= MOST_COMPARED,
        tokens={side: _mean_tokens(pairs, side) for side in SIDES},
        seconds=_median(pair.seconds for pair in pairs),
        shadow_seconds=_median(pair.shadow_seconds for pair in pairs),
        examples=tuple(examples),
    )


def _share(same: Sequence[bool], alpha: float) -> Estimate:
    return last_estimate(confidence_sequence(np.asarray(same, dtype=np.float64), 0.0, 1.0, alpha), len(same))


def _mean_tokens(pairs: Sequence[ShadowPair], side: Side) -> float | None:
    counts = [
        count
        for pair in pairs
        if None not in (pair.tokens, pair.shadow_tokens) and (count := pair.tokens_of(side)) is not None
    ]
    return float(np.mean(counts)) if counts else None


def _median(seconds: Iterable[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return float(np.median(known)) if known else None
