"""The decision for a tenant's request: the arm of its governing rollout, else the published composition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain

from vllm_edit.json_value import JSONValue
from vllm_edit.rollout.arm import Arm, Mode, Side
from vllm_edit.rollout.assignment import Assignment, assign
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadowed import Shadowed, shadowed
from vllm_edit.rollout.sticky import StickyKey


@dataclass(frozen=True)
class TenantState:
    """A tenant's state at one time.

    Attributes:
        tenant: The tenant.
        active: The published composition; None for the base model.
        rollout: The governing rollout, if any.
        valid_until: When `active` expires, if it does.
        beside: Further governing rollouts. Their audiences do not overlap, and all have the same control.
        shadowing: Rollouts whose other arm repeats answers.
    """

    tenant: str
    active: str | None
    rollout: Rollout | None = None
    valid_until: datetime | None = None
    beside: tuple[Rollout, ...] = ()
    shadowing: tuple[Rollout, ...] = ()

    @property
    def deciding(self) -> tuple[Rollout, ...]:
        """The rollouts that may decide a request: those that serve two arms; if none does, the first."""
        if self.rollout is None:
            return ()
        return tuple(one for one in (self.rollout, *self.beside) if one.running) or (self.rollout,)

    @property
    def published(self) -> Arm:
        return Arm("base") if self.active is None else Arm("weights", self.active, self.valid_until)

    def served(self, now: datetime) -> Arm:
        """Return the arm for requests without a sticky key and mode: the governing rollout's, else the published."""
        assignment = _assigned(self, None, now)
        return self.published if assignment is None else assignment.arm


@dataclass(frozen=True)
class Choice:
    """The decision for a request.

    Attributes:
        mode: How the adapter is applied.
        adapter: Full name of a compiled patch; None for the base model.
        tenant: The tenant.
        reason: OpenFeature's reason: STATIC (the request named it), TARGETING_MATCH (the tenant's publication), DEFAULT
            (base, because nothing was requested or published), or a rollout's (`assignment.Reason`).
        arm: The rollout's side.
        assignment: Set only if the rollout alone decided; the request is then an exposure.
        shadowed: Set if another arm may repeat the answer.
    """

    mode: Mode
    adapter: str | None = None
    tenant: str | None = None
    reason: str = "STATIC"
    arm: Side | None = None
    assignment: Assignment | None = None
    shadowed: Shadowed | None = None


def decide(
    state: TenantState,
    headers: Mapping[str, str],
    body: Mapping[str, JSONValue],
    now: datetime,
    api_key_id: str | None = None,
    mode: Mode | None = None,
) -> Choice:
    """Choose the composition and mode that answer a request.

    If the request names a mode, the rollout still chooses the composition, but the answer is not an observation of
    either arm: a user's choice of a mode may depend on earlier answers.

    Args:
        state: The tenant's state.
        headers: Request headers by lower-case name.
        body: The request's JSON body.
        now: Time of the decision.
        api_key_id: Id of the caller's API key.
        mode: The mode that the request names (`acme:ike`), if any.
    """
    sticky_key = None
    if state.deciding:  # rollouts beside each other have the same sources of the key
        sticky_key = state.deciding[0].sticky.sticky_key(headers, body, api_key_id)
    assignment = _assigned(state, sticky_key, now)
    arm = state.published if assignment is None else assignment.arm
    if assignment is None:
        reason = "DEFAULT" if state.active is None else "TARGETING_MATCH"
        choice = _asked(state.tenant, arm, mode, reason)
    elif mode is not None:
        choice = _asked(state.tenant, arm, mode, "STATIC")
    else:
        choice = Choice(arm.mode, arm.name, state.tenant, assignment.reason, assignment.side, assignment)
    if mode is not None or not state.shadowing:
        return choice
    repeated = shadowed(
        state.shadowing, arm, assignment, lambda one: one.sticky.sticky_key(headers, body, api_key_id), now
    )
    return replace(choice, shadowed=repeated)


def _assigned(state: TenantState, sticky_key: StickyKey | None, now: datetime) -> Assignment | None:
    """Return the assignment of the key by the rollout that names it, else by the rollout that admits it, else by the
    first, which serves it control; None if the publication decides.

    An expired arm ends the comparison for both sides: if only its own users had no exposures any more, the numbers of
    users would not fit the split.
    """
    deciding = [rollout for rollout in state.deciding if rollout.governs]
    if not deciding:
        return None
    named = (rollout for rollout in deciding if rollout.names(sticky_key))
    admitting = (rollout for rollout in deciding if len(deciding) > 1 and rollout.admits(sticky_key))
    rollout = next(chain(named, admitting), deciding[0])
    return None if rollout.expired(now) else assign(rollout, sticky_key)


def _asked(tenant: str, arm: Arm, mode: Mode | None, reason: str) -> Choice:
    """Return the arm's composition, if any, in the requested mode."""
    if arm.name is None or mode == "base":
        return Choice("base", None, tenant, reason)
    return Choice(mode or arm.mode, arm.name, tenant, reason)
