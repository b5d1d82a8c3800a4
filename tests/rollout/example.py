"""A rollout to test with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout

OLD, NEW = (f"capital@{digit * 32}" for digit in "ab")


def rollout(percent: float | None = None, **changes: Any) -> Rollout:
    """One of tenant acme from `OLD` to `NEW`, ramped to `percent` if given."""
    made = Rollout("spring", "acme", Arm("weights", OLD), Arm("weights", NEW), salt="pepper")
    made = replace(made, **changes)
    return made if percent is None else made.ramped(percent)
