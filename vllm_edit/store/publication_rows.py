"""Rows of `publications`: what tenants are and were served. Each function runs in its caller's transaction.

What a tenant is served is its newest publication that is not rolled back; before the first there is the base model.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from vllm_edit.errors import EditError, NotFound
from vllm_edit.store import tables
from vllm_edit.store.entries import Publication
from vllm_edit.store.names import shown


def active(connection: Connection, tenant: str) -> str | None:
    """The name that the tenant is served, None for the base model."""
    p = tables.publications.c
    newest = select(p.name).where(p.tenant == tenant, p.rolled_back_at.is_(None)).order_by(p.id.desc()).limit(1)
    name: str | None = connection.execute(newest).scalar()
    return name


def add(connection: Connection, tenant: str, name: str, *, why: str, override: bool, by: str) -> None:
    """Serve `name` to the tenant from now on."""
    row = {"tenant": tenant, "name": name, "at": datetime.now(UTC), "by": by, "why": why, "override": override}
    connection.execute(insert(tables.publications).values(**row))


def take_back(connection: Connection, tenant: str, to: str | None, *, why: str, by: str) -> str | None:
    """Roll back to the publication before, or to the earlier `to`; returns its name, None for the base model."""
    p = tables.publications.c
    stands = select(p.id, p.name).where(p.tenant == tenant, p.rolled_back_at.is_(None)).order_by(p.id.desc())
    standing = connection.execute(stands).all()
    if not standing:
        raise EditError(f"tenant {tenant!r} is served the base model: there is nothing to take back")
    target = next((row for row in standing[1:] if to in (None, row.name)), None)
    if target is None and to is not None:
        names = [row.name for row in standing[1:]]
        raise NotFound(f"{shown(to)} is not an earlier publication of tenant {tenant!r}", names[:3])
    after = target.id if target else 0
    undone = update(tables.publications).where(p.tenant == tenant, p.id > after, p.rolled_back_at.is_(None))
    told = {"rolled_back_by": by, "rolled_back_why": why}
    connection.execute(undone.values(rolled_back_at=datetime.now(UTC), **told))
    return target.name if target else None


def history(connection: Connection, tenant: str) -> list[Publication]:
    """The tenant's publications, newest first, rolled-back ones included."""
    p = tables.publications.c
    found = connection.execute(select(tables.publications).where(p.tenant == tenant).order_by(p.id.desc()))
    return [_publication(row) for row in found]


def standing_names(connection: Connection) -> set[str]:
    """Names that some tenant is served, or could be after a rollback."""
    p = tables.publications.c
    return set(connection.execute(select(p.name).where(p.rolled_back_at.is_(None))).scalars())


def who_may_be_served(connection: Connection, name: str) -> str | None:
    """A tenant that is served `name`, or could be after a rollback."""
    p = tables.publications.c
    tenant: str | None = connection.execute(
        select(p.tenant).where(p.name == name, p.rolled_back_at.is_(None)).limit(1)
    ).scalar()
    return tenant


def _publication(row: Row[Any]) -> Publication:
    fields = {key: value for key, value in row._mapping.items() if key != "id"}
    return Publication(**fields)
