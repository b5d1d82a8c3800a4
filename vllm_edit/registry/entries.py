"""What the registry tells: values, never rows. What a tenant is served at a time is a function of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from vllm_edit.rollout.arm import Mode
from vllm_edit.rollout.buckets import BUCKETS
from vllm_edit.rollout.decision import TenantState
from vllm_edit.rollout.rollout import Rollout

Status = Literal["ungated", "accepted", "rejected"]


@dataclass(frozen=True)
class PatchEntry:
    """A stored patch as the registry knows it. One that is not `accepted` by its gate is published only by override.

    valid_until: the earliest that its edits say.
    """

    name: str
    patch: str
    digest: str
    adapter_id: int
    saved_at: datetime
    status: Status
    reason: str
    valid_until: datetime | None = None


@dataclass(frozen=True)
class Tenant:
    """Whom requests are for, and what those are answered with that name no user.

    active: the composition's name, None for the base model. valid_until: when it ends by itself, if it does.
    rollout: the rollout that decides, if one does. treatment: while it serves two arms, the other one as a request's
    `model` field would say it, for `treated` per cent of the users.
    """

    name: str
    created_at: datetime
    active: str | None
    valid_until: datetime | None = None
    mode: Mode = "base"
    rollout: str | None = None
    treatment: str | None = None
    treated: float = 0.0

    @classmethod
    def of(cls, state: TenantState, created_at: datetime, now: datetime) -> Tenant:
        """The tenant in this state."""
        arm, rollout = state.served(now), state.rollout
        running = rollout if rollout is not None and rollout.running else None
        return cls(
            state.tenant,
            created_at,
            arm.name,
            arm.valid_until,
            arm.mode,
            rollout=None if rollout is None else rollout.name,
            treatment=None if running is None else str(running.treatment),
            treated=0.0 if running is None else running.share * running.split * 100 / BUCKETS**2,
        )


@dataclass(frozen=True)
class Publication:
    """One entry of a tenant's history. `valid_until`: its own end or its patch's, whichever comes first."""

    tenant: str
    name: str
    at: datetime
    by: str
    why: str
    override: bool
    rolled_back_at: datetime | None
    rolled_back_by: str | None
    rolled_back_why: str | None
    valid_until: datetime | None = None

    @property
    def rolled_back(self) -> bool:
        return self.rolled_back_at is not None

    def ended(self, at: datetime) -> bool:
        """Past its end of validity."""
        return self.valid_until is not None and self.valid_until <= at


def served(newest_first: Iterable[Publication], now: datetime) -> Publication | None:
    """What is published for a tenant with this history: its newest one that is neither rolled back nor ended; None is
    the base model. One that ends makes way for the one before, as if it were rolled back.

    When it was published does not matter: the clock that `now` comes from may be behind the publisher's.
    """
    return next((one for one in newest_first if not one.rolled_back and not one.ended(now)), None)


def tenant_state(
    tenant: str, newest_first: Iterable[Publication], rollout: Rollout | None, now: datetime
) -> TenantState:
    """What decides the tenant's requests. rollout: the one that governs it, if one does."""
    publication = served(newest_first, now)
    if publication is None:
        return TenantState(tenant, None, rollout)
    return TenantState(tenant, publication.name, rollout, publication.valid_until)


def served_at(newest_first: Iterable[Publication], at: datetime) -> Publication | None:
    """What a tenant with this history was served at some time, as far as it is known now."""
    begun = (one for one in newest_first if one.at <= at)
    stood = (one for one in begun if one.rolled_back_at is None or one.rolled_back_at > at)
    return next((one for one in stood if not one.ended(at)), None)
