"""Rows of `rollouts`. Each function runs in its caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, insert, select, update

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import nearest, shown
from vllm_edit.registry.rollout_tables import rollouts
from vllm_edit.rollout.rollout import Rollout

_JSON = TypeAdapter(Rollout)
_FIXED = TypeAdapter(dict[str, Any])
_MOVING = ("state", "share", "closed")
_COLUMNS = {"name", "tenant", *_MOVING}


@dataclass(frozen=True)
class RolloutEntry:
    """A rollout with the times of its creation and last change."""

    rollout: Rollout
    created_at: datetime
    changed_at: datetime


def add(connection: Connection, rollout: Rollout) -> None:
    if connection.execute(select(rollouts.c.name).where(rollouts.c.name == rollout.name)).first() is not None:
        raise EditError(f"there is a rollout {rollout.name!r} already; choose another name")
    now = datetime.now(UTC)
    fixed = _JSON.dump_json(rollout, exclude=_COLUMNS).decode()
    moving = {column: getattr(rollout, column) for column in _COLUMNS}
    connection.execute(insert(rollouts).values(**moving, settings=fixed, created_at=now, changed_at=now))


def put(connection: Connection, rollout: Rollout) -> None:
    """Update the mutable columns of an existing rollout."""
    moved = {column: getattr(rollout, column) for column in _MOVING}
    this = rollouts.c.name == rollout.name
    connection.execute(update(rollouts).where(this).values(**moved, changed_at=datetime.now(UTC)))


def find(connection: Connection, name: str) -> RolloutEntry:
    """Return the rollout; raise `NotFound` with the nearest names if there is none."""
    row = connection.execute(select(rollouts).where(rollouts.c.name == name)).first()
    if row is None:
        names = connection.execute(select(rollouts.c.name)).scalars()
        raise NotFound(f"no rollout {shown(name)}", nearest(name, names))
    return _entry(row)


def newest_first(connection: Connection, tenant: str | None = None) -> list[RolloutEntry]:
    wanted = select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.name)
    if tenant is not None:
        wanted = wanted.where(rollouts.c.tenant == tenant)
    return [_entry(row) for row in connection.execute(wanted)]


def standing(connection: Connection, tenant: str | None = None) -> list[Rollout]:
    """Return the rollouts that are not closed: they decide what is served, or may start to."""
    wanted = select(rollouts).where(rollouts.c.closed.is_(False)).order_by(rollouts.c.name)
    if tenant is not None:
        wanted = wanted.where(rollouts.c.tenant == tenant)
    return [_entry(row).rollout for row in connection.execute(wanted)]


def governing(connection: Connection) -> dict[str, Rollout]:
    """Return, by tenant, the rollout that decides what it is served; omit tenants without a rollout."""
    return {rollout.tenant: rollout for rollout in standing(connection) if rollout.governs}


def close(connection: Connection, tenant: str, but: str | None = None) -> list[str]:
    """Close the tenant's rollouts except `but`; return their names. Without a rollout, publications decide again."""
    closed = [rollout for rollout in standing(connection, tenant) if rollout.name != but]
    for rollout in closed:
        put(connection, rollout.ended())
    return [rollout.name for rollout in closed]


def refuse_running(connection: Connection, tenant: str) -> None:
    """Raise `EditError` while two arms are served: a publication would silently end the comparison."""
    for rollout in standing(connection, tenant):
        if rollout.running:
            raise EditError(
                f"rollout {rollout.name!r} of tenant {tenant!r} is {rollout.state}; promote or kill it first"
            )


def names_in_use(connection: Connection) -> dict[str, str]:
    """Return, by composition, the rollout that serves it or may start to. Expired arms are omitted."""
    now = datetime.now(UTC)
    return {
        arm.name: rollout.name
        for rollout in standing(connection)
        for arm in (rollout.control, rollout.treatment)
        if arm.name is not None and not arm.ended(now)
    }


def _entry(row: Row[Any]) -> RolloutEntry:
    fixed = _FIXED.validate_json(row.settings)
    moving = {column: getattr(row, column) for column in _COLUMNS}
    return RolloutEntry(_JSON.validate_python(fixed | moving), row.created_at, row.changed_at)
