"""Patches of the registry: which exist, under which adapter id, and what their gates said.

Each function runs in its caller's transaction. Retired patches (pending removal by gc) are invisible to all queries but
`retired`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from vllm_edit.errors import NotFound
from vllm_edit.names import check_name, nearest, short, shown, split_name
from vllm_edit.registry import tables

Status = Literal["ungated", "accepted", "rejected"]

_CURRENT = select(tables.patches).where(tables.patches.c.retired.is_(None))


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


def add(connection: Connection, name: str, valid_until: datetime | None) -> PatchEntry:
    """Insert a patch, or mark a known patch as saved again, which ends its retirement.

    Its time is after that of every other patch, so that it is the newest also if the clock of the machine that saved
    another is ahead.
    """
    patch, digest = split_name(name)
    newest: datetime | None = connection.execute(select(func.max(tables.patches.c.saved_at))).scalar()
    now = datetime.now(UTC)
    saved_at = now if newest is None else max(now, newest + timedelta(microseconds=1))
    this = tables.patches.c.name == name
    fields = {"saved_at": saved_at, "valid_until": valid_until, "retired": None}
    again = connection.execute(update(tables.patches).where(this).values(**fields))
    if not again.rowcount:
        row = {"name": name, "patch": patch, "digest": digest, **fields}
        connection.execute(insert(tables.patches).values(**row, status="ungated", reason=""))
    return find(connection, name)


def retire(connection: Connection, name: str, generation: int) -> None:
    connection.execute(update(tables.patches).where(tables.patches.c.name == name).values(retired=generation))


def retired(connection: Connection) -> dict[str, int]:
    """Return retired patches, each with the generation that retired it, the oldest first."""
    p = tables.patches.c
    found = connection.execute(select(p.name, p.retired).where(p.retired.is_not(None)).order_by(p.retired, p.name))
    return {row.name: row.retired for row in found}


def remove(connection: Connection, name: str) -> None:
    connection.execute(delete(tables.patches).where(tables.patches.c.name == name))


def known(connection: Connection, name: str) -> PatchEntry | None:
    row = connection.execute(_CURRENT.where(tables.patches.c.name == check_name(name))).first()
    return None if row is None else _entry(row)


def find(connection: Connection, name: str) -> PatchEntry:
    """Return the patch's entry; raise `NotFound` with the nearest names if there is none."""
    entry = known(connection, name)
    if entry is None:
        if name in retired(connection):
            raise NotFound(f"{short(name)} is being removed by gc; compile it again to keep it")
        names = [entry.name for entry in newest_first(connection)]
        raise NotFound(f"no compiled patch {shown(name)} in the registry", nearest(name, names))
    return entry


def newest_first(connection: Connection) -> list[PatchEntry]:
    p = tables.patches.c
    return [_entry(row) for row in connection.execute(_CURRENT.order_by(p.saved_at.desc(), p.adapter_id.desc()))]


def set_status(connection: Connection, name: str, status: Status, reason: str) -> None:
    find(connection, name)
    where = tables.patches.c.name == name
    connection.execute(update(tables.patches).where(where).values(status=status, reason=reason))


def _entry(row: Row[Any]) -> PatchEntry:
    fields = {key: value for key, value in row._mapping.items() if key != "retired"}
    return PatchEntry(**fields)
