"""Values that the registry returns instead of rows, and the functions that derive what a tenant is served."""

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
    """A stored patch's entry. A patch that its gate has not `accepted` is published only by override.

    Attributes:
        valid_until: The earliest end of validity of its edits.
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
    """A tenant, and what it is served by default.

    Attributes:
        active: Name of the composition that answers requests without a sticky key; None for the base model.
        valid_until: When `active` expires, if it does.
        mode: How `active` is applied.
        rollout: The rollout that decides, if any.
        treatment: The treatment arm as a request's `model` field names it, while the rollout serves two arms.
        treated: Percentage of the sticky keys that get the treatment.
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
    """One entry of a tenant's history. `valid_until`: its own expiry or its patch's, whichever comes first."""

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
        """True if the publication has expired."""
        return self.valid_until is not None and self.valid_until <= at


def served(newest_first: Iterable[Publication], now: datetime) -> Publication | None:
    """Return the newest publication that is neither rolled back nor expired; None for the base model.

    An expired publication is replaced by the previous one, as if it were rolled back. The time of publication is
    ignored: the clock that `now` comes from may be behind the publisher's.
    """
    return next((entry for entry in newest_first if not entry.rolled_back and not entry.ended(now)), None)


def tenant_state(
    tenant: str, newest_first: Iterable[Publication], rollout: Rollout | None, now: datetime
) -> TenantState:
    """Return the state that decides the tenant's requests. `rollout`: the governing rollout, if any."""
    publication = served(newest_first, now)
    if publication is None:
        return TenantState(tenant, None, rollout)
    return TenantState(tenant, publication.name, rollout, publication.valid_until)


def served_at(newest_first: Iterable[Publication], at: datetime) -> Publication | None:
    """Return the publication that a tenant with this history was served at time `at`, as far as known now."""
    begun = (entry for entry in newest_first if entry.at <= at)
    in_force = (entry for entry in begun if entry.rolled_back_at is None or entry.rolled_back_at > at)
    return next((entry for entry in in_force if not entry.ended(at)), None)
