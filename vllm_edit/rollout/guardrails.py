"""Warnings that a rollout should be stopped. No rollout stops by itself."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.rollout.comparison import Comparison

IMBALANCED = 100.0
"""Threshold of the e-value: it is ever exceeded with probability at most 1 % if both sides lose requests equally."""


def warnings(comparisons: Sequence[Comparison], imbalance: float) -> list[str]:
    """Return the reasons for a kill, one line each."""
    found = [
        f"treatment is worse on {comparison.metric.name}, decided after {comparison.decided_at} comparisons: "
        "consider a kill"
        for comparison in comparisons
        if comparison.verdict == "worse"
    ]
    if imbalance > IMBALANCED:
        found.append(
            "the shares of users on the arms differ from the split: answers of one arm are lost or logged twice, "
            "so no comparison here can be trusted"
        )
    return found
