"""Rows of `keys`. Each function runs in its caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import shown
from vllm_edit.registry import keys, tables
from vllm_edit.registry.keys import Key, NewKey, Right


def add(
    connection: Connection,
    tenant: str | None,
    rights: Iterable[Right],
    *,
    label: str,
    expires_at: datetime | None,
    by: str,
) -> NewKey:
    id, presented = keys.make()
    row = {"id": id, "tenant": tenant, "rights": " ".join(rights), "hash": keys.hashed(presented), "label": label}
    made = {"created_at": datetime.now(UTC), "created_by": by, "expires_at": expires_at}
    connection.execute(insert(tables.keys).values(**row, **made))
    return NewKey(find(connection, id), presented)


def find(connection: Connection, id: str) -> Key:
    named = keys.is_id(id)
    row = connection.execute(select(tables.keys).where(tables.keys.c.id == id)).first() if named else None
    if row is None:
        raise NotFound(f"no key {shown(id)}; `vllm-edit key list` lists the ids")
    return _key(row)


def oldest_first(connection: Connection) -> list[Key]:
    k = tables.keys.c
    return [_key(row) for row in connection.execute(select(tables.keys).order_by(k.created_at, k.id))]


def revoke(connection: Connection, id: str, *, by: str, why: str) -> Key:
    """Revoke the key permanently."""
    if find(connection, id).revoked_at is not None:
        raise EditError(f"key {id} is revoked already")
    revocation = {"revoked_at": datetime.now(UTC), "revoked_by": by, "revoked_why": why}
    connection.execute(update(tables.keys).where(tables.keys.c.id == id).values(**revocation))
    return find(connection, id)


def _key(row: Row[Any]) -> Key:
    fields = dict(row._mapping)
    return Key(**fields | {"rights": tuple(fields["rights"].split())})
