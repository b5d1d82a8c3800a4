"""What a tenant's request is answered with: its rollout's arm where one governs, else what is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vllm_edit.rollout.arm import Arm, Mode, Side
from vllm_edit.rollout.assignment import Assignment, assign
from vllm_edit.rollout.rollout import Rollout


@dataclass(frozen=True)
class TenantState:
    """A tenant at one moment: the published composition (None: the base model), and the rollout that governs it."""

    tenant: str
    active: str | None
    rollout: Rollout | None = None


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
    rollout = state.rollout
    if rollout is None or not rollout.governs:
        return _published(state, mode)
    assignment = assign(rollout, rollout.sticky.key(headers, body, api_key))
    arm = assignment.arm
    if arm.ended(now):
        return _published(state, mode)
    if mode is not None:
        return _asked(state.tenant, arm, mode, "STATIC")
    return Choice(arm.mode, arm.name, state.tenant, assignment.reason, assignment.side, assignment)


def _published(state: TenantState, mode: Mode | None) -> Choice:
    published = Arm("base") if state.active is None else Arm("weights", state.active)
    return _asked(state.tenant, published, mode, "DEFAULT" if state.active is None else "TARGETING_MATCH")


def _asked(tenant: str, arm: Arm, mode: Mode | None, reason: str) -> Choice:
    """The arm's composition in the mode that was asked for, if it has a composition."""
    if arm.name is None or mode == "base":
        return Choice("base", None, tenant, reason)
    return Choice(mode or arm.mode, arm.name, tenant, reason)
