"""Finds the arm that answers a request a second time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from vllm_edit.rollout.arm import Arm, Side
from vllm_edit.rollout.assignment import Assignment
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadow import Shadow
from vllm_edit.rollout.sticky import StickyKey


@dataclass(frozen=True)
class Shadowed:
    """A request that may be answered a second time.

    Attributes:
        rollout: The rollout's name.
        side: The side whose arm answers the client.
        other: The arm of the other side.
        shadow: The rollout's shadow.
    """

    rollout: str
    side: Side
    other: Arm
    shadow: Shadow


def shadowed(
    rollouts: Sequence[Rollout],
    answering: Arm,
    assignment: Assignment | None,
    key_of: Callable[[Rollout], StickyKey | None],
    now: datetime,
) -> Shadowed | None:
    """Return what answers a request a second time; None if nothing does.

    The rollout that assigned the request counts. Else, before a rollout's first ramp, its control must be what answers:
    of several such rollouts, the first that admits the user, else the first.

    Args:
        rollouts: The tenant's rollouts with a shadow.
        answering: The arm that answers the client.
        assignment: The assignment by which it answers, if a rollout decided.
        key_of: Returns the request's sticky key for a rollout.
        now: Time of the decision.
    """
    if assignment is not None:
        for rollout in rollouts:
            if rollout.name == assignment.rollout:
                return _against(rollout, assignment.side, now)
    waiting = [one for one in rollouts if one.state == "created" and str(one.control) == str(answering)]
    admitting = (one for one in waiting if len(waiting) > 1 and one.admits(key_of(one)))
    found = next(admitting, waiting[0] if waiting else None)
    return None if found is None else _against(found, "control", now)


def _against(rollout: Rollout, side: Side, now: datetime) -> Shadowed | None:
    other = rollout.arm("control" if side == "treatment" else "treatment")
    if rollout.shadow is None or other.ended(now):
        return None
    return Shadowed(rollout.name, side, other, rollout.shadow)
