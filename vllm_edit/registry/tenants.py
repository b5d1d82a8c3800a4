"""Tenants and what they are served. Functions with a connection run in their caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import check_tenant, nearest, shown
from vllm_edit.registry import publications, tables
from vllm_edit.registry.publications import Publication, served
from vllm_edit.rollout.arm import Mode
from vllm_edit.rollout.buckets import BUCKETS
from vllm_edit.rollout.decision import TenantState
from vllm_edit.rollout.rollout import Rollout


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


def tenant_state(
    tenant: str, newest_first: Iterable[Publication], rollout: Rollout | None, now: datetime
) -> TenantState:
    """Return the state that decides the tenant's requests. `rollout`: the governing rollout, if any."""
    publication = served(newest_first, now)
    if publication is None:
        return TenantState(tenant, None, rollout)
    return TenantState(tenant, publication.name, rollout, publication.valid_until)


def create(connection: Connection, name: str) -> Tenant:
    check_tenant(name)
    if connection.execute(select(tables.tenants).where(tables.tenants.c.name == name)).first() is not None:
        raise EditError(f"there is a tenant {name!r} already; choose another name")
    created_at = datetime.now(UTC)
    connection.execute(insert(tables.tenants).values(name=name, created_at=created_at))
    return Tenant(name, created_at, None)


def by_name(connection: Connection, governing: Mapping[str, Rollout]) -> list[Tenant]:
    """Return all tenants by name, each with what it is served. `governing`: the rollout that decides, by tenant."""
    standing = publications.standing(connection)
    now, tenants = datetime.now(UTC), []
    for row in connection.execute(select(tables.tenants)):
        state = tenant_state(row.name, standing.get(row.name, ()), governing.get(row.name), now)
        tenants.append(Tenant.of(state, row.created_at, now))
    return sorted(tenants, key=lambda tenant: tenant.name)  # not in SQL: databases differ in their collation


def state(connection: Connection, name: str, governing: Mapping[str, Rollout]) -> TenantState:
    """Return the state that decides the requests of an existing tenant. `governing`: as for `by_name`."""
    return tenant_state(name, publications.history(connection, name), governing.get(name), datetime.now(UTC))


def require(connection: Connection, name: str) -> None:
    """Raise `NotFound` with the nearest names if there is no such tenant."""
    names = connection.execute(select(tables.tenants.c.name)).scalars().all()
    if name not in names:
        raise NotFound(f"no tenant {shown(name)}", nearest(name, names))
