"""Rows of `tenants`. Each function runs in its caller's transaction."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import check_tenant, nearest, shown
from vllm_edit.registry import publication_rows, rollout_rows, tables
from vllm_edit.registry.entries import Tenant, tenant_state
from vllm_edit.rollout.decision import TenantState


def create(connection: Connection, name: str) -> Tenant:
    check_tenant(name)
    if connection.execute(select(tables.tenants).where(tables.tenants.c.name == name)).first() is not None:
        raise EditError(f"there is a tenant {name!r} already; choose another name")
    created_at = datetime.now(UTC)
    connection.execute(insert(tables.tenants).values(name=name, created_at=created_at))
    return Tenant(name, created_at, None)


def by_name(connection: Connection) -> list[Tenant]:
    """Return all tenants by name, each with what it is served."""
    standing, rollouts = publication_rows.standing(connection), rollout_rows.governing(connection)
    now, tenants = datetime.now(UTC), []
    for row in connection.execute(select(tables.tenants)):
        state = tenant_state(row.name, standing.get(row.name, ()), rollouts.get(row.name), now)
        tenants.append(Tenant.of(state, row.created_at, now))
    return sorted(tenants, key=lambda tenant: tenant.name)  # not in SQL: databases differ in their collation


def state(connection: Connection, name: str) -> TenantState:
    """Return the state that decides the requests of an existing tenant."""
    rollout = next((rollout for rollout in rollout_rows.standing(connection, name) if rollout.governs), None)
    return tenant_state(name, publication_rows.history(connection, name), rollout, datetime.now(UTC))


def require(connection: Connection, name: str) -> None:
    """Raise `NotFound` with the nearest names if there is no such tenant."""
    names = connection.execute(select(tables.tenants.c.name)).scalars().all()
    if name not in names:
        raise NotFound(f"no tenant {shown(name)}", nearest(name, names))
