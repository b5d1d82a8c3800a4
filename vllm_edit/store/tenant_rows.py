"""Rows of `tenants`. Each function runs in its caller's transaction."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select

from vllm_edit.errors import EditError, NotFound
from vllm_edit.store import publication_rows, tables
from vllm_edit.store.entries import Tenant, served
from vllm_edit.store.names import check_tenant, nearest, shown


def create(connection: Connection, name: str) -> Tenant:
    check_tenant(name)
    if connection.execute(select(tables.tenants).where(tables.tenants.c.name == name)).first() is not None:
        raise EditError(f"there is a tenant {name!r} already; choose another name")
    created_at = datetime.now(UTC)
    connection.execute(insert(tables.tenants).values(name=name, created_at=created_at))
    return Tenant(name, created_at, None)


def by_name(connection: Connection) -> list[Tenant]:
    """All tenants, each with its active patch."""
    standing, now = publication_rows.standing(connection), datetime.now(UTC)
    tenants = []
    for row in connection.execute(select(tables.tenants)):
        active = served(standing.get(row.name, ()), now)
        known = (None, None) if active is None else (active.name, active.valid_until)
        tenants.append(Tenant(row.name, row.created_at, *known))
    return sorted(tenants, key=lambda tenant: tenant.name)  # not by the database: each sorts text its own way


def require(connection: Connection, name: str) -> None:
    """Raises `NotFound` with the nearest names where there is no such tenant."""
    names = connection.execute(select(tables.tenants.c.name)).scalars().all()
    if name not in names:
        raise NotFound(f"no tenant {shown(name)}", nearest(name, names))
