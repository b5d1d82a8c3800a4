"""Tenants and what they are served. Functions with a connection run in their caller's transaction."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select, update

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import check_tenant, nearest, shown
from vllm_edit.registry import publications, tables
from vllm_edit.registry.publications import Publication, served
from vllm_edit.rollout.arm import Mode
from vllm_edit.rollout.audience import Audience
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
        beside: Further rollouts that decide, for other users.
        holdout: Percentage of the sticky keys that take part in no rollout.
    """

    name: str
    created_at: datetime
    active: str | None
    valid_until: datetime | None = None
    mode: Mode = "base"
    rollout: str | None = None
    treatment: str | None = None
    treated: float = 0.0
    beside: tuple[str, ...] = ()
    holdout: float = 0.0

    @classmethod
    def of(cls, state: TenantState, created_at: datetime, now: datetime, holdout: int = 0) -> Tenant:
        """The tenant in this state. `holdout`: in buckets."""
        arm, (rollout, *beside) = state.served(now), state.deciding or (None,)
        running = rollout if rollout is not None and rollout.running else None
        return cls(
            state.tenant,
            created_at,
            arm.name,
            arm.valid_until,
            arm.mode,
            rollout=None if rollout is None else rollout.name,
            treatment=None if running is None else str(running.treatment),
            treated=0.0 if running is None else _treated(running),
            beside=tuple(other.name for other in beside if other is not None),
            holdout=holdout * 100 / BUCKETS,
        )


def _treated(rollout: Rollout) -> float:
    """The percentage of the tenant's users on treatment."""
    treated = rollout.share * rollout.split * 100 / BUCKETS**2
    if rollout.audience is None:
        return treated
    users = rollout.audience
    return treated * (users.high - users.low) / BUCKETS * (1 - users.holdout / BUCKETS)


def tenant_state(
    tenant: str, newest_first: Iterable[Publication], rollouts: Sequence[Rollout], now: datetime
) -> TenantState:
    """Return the state that decides the tenant's requests. `rollouts`: the governing rollouts, if any."""
    publication, first = served(newest_first, now), next(iter(rollouts), None)
    if publication is None:
        return TenantState(tenant, None, first, beside=tuple(rollouts[1:]))
    return TenantState(tenant, publication.name, first, publication.valid_until, tuple(rollouts[1:]))


def create(connection: Connection, name: str) -> Tenant:
    check_tenant(name)
    if connection.execute(select(tables.tenants).where(tables.tenants.c.name == name)).first() is not None:
        raise EditError(f"there is a tenant {name!r} already; choose another name")
    created_at = datetime.now(UTC)
    connection.execute(insert(tables.tenants).values(name=name, created_at=created_at))
    return Tenant(name, created_at, None)


def by_name(connection: Connection, governing: Mapping[str, Sequence[Rollout]]) -> list[Tenant]:
    """Return all tenants by name, each with what it is served. `governing`: the rollouts that decide, by tenant."""
    standing = publications.standing(connection)
    now, tenants = datetime.now(UTC), []
    for row in connection.execute(select(tables.tenants)):
        state = tenant_state(row.name, standing.get(row.name, ()), governing.get(row.name, ()), now)
        tenants.append(Tenant.of(state, row.created_at, now, row.holdout or 0))
    return sorted(tenants, key=lambda tenant: tenant.name)  # not in SQL: databases differ in their collation


def state(connection: Connection, name: str, governing: Mapping[str, Sequence[Rollout]]) -> TenantState:
    """Return the state that decides the requests of an existing tenant. `governing`: as for `by_name`."""
    return tenant_state(name, publications.history(connection, name), governing.get(name, ()), datetime.now(UTC))


def audience(connection: Connection, name: str, asked: Audience | None) -> Audience | None:
    """Return the audience of a new rollout: what is asked for, with the tenant's holdout and salt; None for all users.

    The tenant gets its salt with its first audience, and keeps it.
    """
    t = tables.tenants.c
    holdout, salt = connection.execute(select(t.holdout, t.salt).where(t.name == name)).one()
    if asked is None and not holdout:
        return None
    if salt is None:
        salt = secrets.token_hex(8)
        connection.execute(update(tables.tenants).where(t.name == name).values(salt=salt))
    return replace(asked or Audience(), holdout=holdout or 0, salt=salt)


def holdout(connection: Connection, name: str) -> int:
    """Return the buckets of the tenant's users who take part in no rollout."""
    found: int | None = connection.execute(
        select(tables.tenants.c.holdout).where(tables.tenants.c.name == name)
    ).scalar()
    return found or 0


def set_holdout(connection: Connection, name: str, buckets: int) -> None:
    connection.execute(update(tables.tenants).where(tables.tenants.c.name == name).values(holdout=buckets))


def require(connection: Connection, name: str) -> None:
    """Raise `NotFound` with the nearest names if there is no such tenant."""
    names = connection.execute(select(tables.tenants.c.name)).scalars().all()
    if name not in names:
        raise NotFound(f"no tenant {shown(name)}", nearest(name, names))
