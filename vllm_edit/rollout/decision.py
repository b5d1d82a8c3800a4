"""What a tenant's request is answered with: its rollout's arm where one governs, else what is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vllm_edit.rollout.arm import Arm, Mode, Side
from vllm_edit.rollout.assignment import Assignment, assign
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.sticky import StickyKey


@dataclass(frozen=True)
class TenantState:
    """A tenant at one moment: the published composition (None: the base model) with its end, and the rollout that
    governs it."""

    tenant: str
    active: str | None
    rollout: Rollout | None = None
    valid_until: datetime | None = None

    @property
    def published(self) -> Arm:
        return Arm("base") if self.active is None else Arm("weights", self.active, self.valid_until)

    def served(self, now: datetime) -> Arm:
        """What a request is answered with that names no user and asks for no mode: the governing rollout's arm, else
        what is published."""
        assignment = _assigned(self, None, now)
        return self.published if assignment is None else assignment.arm


@dataclass(frozen=True)
class Choice:
    """What answers a request. `adapter` is a compiled patch's full name, `None` for base.

    reason is OpenFeature's: STATIC (the request named it), TARGETING_MATCH (the tenant's), DEFAULT (base, because
    nothing was asked or nothing is published), or what a rollout says (`assignment.Reason`).
    assignment: set where the rollout decided alone; that is what makes the request an exposure.
    """

    mode: Mode
    adapter: str | None = None
    tenant: str | None = None
    reason: str = "STATIC"
    arm: Side | None = None
    assignment: Assignment | None = None


def decide(
    state: TenantState,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    now: datetime,
    api_key: str | None = None,
    mode: Mode | None = None,
) -> Choice:
    """The answer's composition and mode.

    headers: by lower-case name. api_key: the id of the caller's key. mode: what the request itself asks for
    (`acme:ike`), None where it leaves that open. The rollout then still says which composition, but the answer is no
    observation of either arm: whether a request asks may depend on what its user was answered before.
    """
    key = state.rollout.sticky.key(headers, body, api_key) if state.rollout is not None else None
    assignment = _assigned(state, key, now)
    if assignment is None:
        reason = "DEFAULT" if state.active is None else "TARGETING_MATCH"
        return _asked(state.tenant, state.published, mode, reason)
    arm = assignment.arm
    if mode is not None:
        return _asked(state.tenant, arm, mode, "STATIC")
    return Choice(arm.mode, arm.name, state.tenant, assignment.reason, assignment.side, assignment)


def _assigned(state: TenantState, key: StickyKey | None, now: datetime) -> Assignment | None:
    """The side that the tenant's rollout puts the key on; None where what is published decides."""
    rollout = state.rollout
    if rollout is None or not rollout.governs:
        return None
    assignment = assign(rollout, key)
    return None if assignment.arm.ended(now) else assignment


def _asked(tenant: str, arm: Arm, mode: Mode | None, reason: str) -> Choice:
    """The arm's composition in the mode that was asked for, if it has a composition."""
    if arm.name is None or mode == "base":
        return Choice("base", None, tenant, reason)
    return Choice(mode or arm.mode, arm.name, tenant, reason)
