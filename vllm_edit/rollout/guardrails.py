"""When a rollout should be stopped: what to tell whoever watches it. Nothing stops by itself."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.rollout.comparison import Comparison

IMBALANCED = 100.0
"""An e-value above this has a chance of 1 % at most, ever, if requests of both sides arrive alike."""


def warnings(comparisons: Sequence[Comparison], imbalance: float) -> list[str]:
    """What speaks for a kill, one line each."""
    found = [
        f"treatment is worse on {one.metric.name}, as was plain after {one.decided_at} comparisons: consider a kill"
        for one in comparisons
        if one.verdict == "worse"
    ]
    if imbalance > IMBALANCED:
        found.append(
            "the arms have other shares of the users than they were given: answers of one are lost or logged twice, "
            "so no comparison here can be trusted"
        )
    return found
