"""Rows of `audit`. Each function runs in its caller's transaction; `Database.change` serializes the writers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from vllm_edit.registry import tables
from vllm_edit.registry.audit import EMPTY, AuditEntry, Head, entry


def append(
    connection: Connection, *, who: str, what: str, tenant: str | None, why: str, old: object, new: object
) -> Head:
    """Add the audit row of the current transaction's change; return the chain's new head."""
    at = datetime.now(UTC).isoformat(timespec="microseconds")
    row = entry(_head(connection), at=at, who=who, what=what, tenant=tenant, why=why, old=old, new=new)
    connection.execute(insert(tables.audit).values(**vars(row)))
    return Head(row.number, row.digest)


def in_order(connection: Connection, tenant: str | None = None, newest: int | None = None) -> list[AuditEntry]:
    """Return the rows, oldest first: all, those of `tenant`, or the last `newest` of them."""
    number = tables.audit.c.number
    wanted = select(tables.audit).order_by(number.desc()).limit(newest)
    if tenant is not None:
        wanted = wanted.where(tables.audit.c.tenant == tenant)
    found: list[Any] = [AuditEntry(**row._mapping) for row in connection.execute(wanted)]
    return found[::-1]


def _head(connection: Connection) -> Head:
    a = tables.audit.c
    row = connection.execute(select(a.number, a.digest).order_by(a.number.desc()).limit(1)).first()
    return EMPTY if row is None else Head(row.number, row.digest)
