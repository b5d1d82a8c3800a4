"""Assignment to an arm: a pure function of the rollout and the sticky key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_edit.rollout.arm import Arm, Side
from vllm_edit.rollout.buckets import bucket, pseudonym
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.sticky import StickyKey

Reason = Literal["SPLIT", "TARGETING_MATCH", "STATIC", "DEFAULT", "DISABLED", "NO_KEY"]
"""OpenFeature's reasons, with their standard meaning, and NO_KEY:

    SPLIT            the hash assigned the key to its side; only these answers are compared
    TARGETING_MATCH  an override names the user
    STATIC           promoted: everyone is on treatment
    DEFAULT          the key does not take part (yet): control
    DISABLED         killed, or not started: control
    NO_KEY           the request has no sticky key: control
"""


@dataclass(frozen=True)
class Assignment:
    """The side that a request is on. `unit` is the sticky key's pseudonym if the answer is compared, else None."""

    rollout: str
    side: Side
    arm: Arm
    reason: Reason
    unit: str | None = None

    @property
    def compared(self) -> bool:
        return self.unit is not None


def assign(rollout: Rollout, sticky_key: StickyKey | None) -> Assignment:
    """Assign the key: it takes part if hash₁(key) < share, and is then on treatment if hash₂(key) < split.

    Neither hash depends on the share, so keys that take part at 5 % also take part at 20 %, on the same side.
    """
    side, reason = _side(rollout, sticky_key)
    unit = (
        pseudonym(rollout.salt, rollout.name, str(sticky_key)) if sticky_key is not None and reason == "SPLIT" else None
    )
    return Assignment(rollout.name, side, rollout.arm(side), reason, unit)


def _side(rollout: Rollout, sticky_key: StickyKey | None) -> tuple[Side, Reason]:
    match rollout.state:
        case "created" | "killed":
            return "control", "DISABLED"
        case "promoted":
            return "treatment", "STATIC"
        case "ramping" | "paused":
            pass
    if sticky_key is None:
        return "control", "NO_KEY"
    if rollout.names(sticky_key):
        return rollout.overrides[sticky_key.value], "TARGETING_MATCH"
    if not rollout.admits(sticky_key):
        return "control", "DEFAULT"
    if bucket(rollout.salt, rollout.name, "enrol", str(sticky_key)) >= rollout.share:
        return "control", "DEFAULT"
    if bucket(rollout.salt, rollout.name, "side", str(sticky_key)) < rollout.split:
        return "treatment", "SPLIT"
    return "control", "SPLIT"
