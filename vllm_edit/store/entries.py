"""What the registry tells: values, never rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Status = Literal["ungated", "accepted", "rejected"]


@dataclass(frozen=True)
class PatchEntry:
    """A stored patch as the registry knows it. A `rejected` one (its gate failed) is published only by override."""

    name: str
    patch: str
    digest: str
    adapter_id: int
    saved_at: datetime
    status: Status
    reason: str


@dataclass(frozen=True)
class Tenant:
    """Whom requests are for; `active` is the name of what they are served, None for the base model."""

    name: str
    created_at: datetime
    active: str | None


@dataclass(frozen=True)
class Publication:
    """One entry of a tenant's history."""

    tenant: str
    name: str
    at: datetime
    by: str
    why: str
    override: bool
    rolled_back_at: datetime | None
    rolled_back_by: str | None
    rolled_back_why: str | None

    @property
    def rolled_back(self) -> bool:
        return self.rolled_back_at is not None
