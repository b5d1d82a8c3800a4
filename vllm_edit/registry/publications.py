"""Publications: what tenants are and were served. Functions with a connection run in their caller's transaction.

A tenant is served its newest publication that is neither rolled back nor expired, else the base model (`served`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, insert, or_, select, update

from vllm_edit.errors import EditError, NotFound
from vllm_edit.instant import is_instant
from vllm_edit.names import short, shown
from vllm_edit.registry import tables
from vllm_edit.registry.patches import PatchEntry


@dataclass(frozen=True)
class Publication:
    """One entry of a tenant's history. `valid_until`: its own expiry or its patch's, whichever comes first."""

    tenant: str
    name: str
    at: datetime
    by: str
    why: str
    override: bool
    rolled_back_at: datetime | None
    rolled_back_by: str | None
    rolled_back_why: str | None
    valid_until: datetime | None = None

    @property
    def rolled_back(self) -> bool:
        return self.rolled_back_at is not None

    def ended(self, at: datetime) -> bool:
        """True if the publication has expired."""
        return self.valid_until is not None and self.valid_until <= at


def served(newest_first: Iterable[Publication], now: datetime) -> Publication | None:
    """Return the newest publication that is neither rolled back nor expired; None for the base model.

    An expired publication is replaced by the previous one, as if it were rolled back. The time of publication is
    ignored: the clock that `now` comes from may be behind the publisher's.
    """
    return next((entry for entry in newest_first if not entry.rolled_back and not entry.ended(now)), None)


def served_at(newest_first: Iterable[Publication], at: datetime) -> Publication | None:
    """Return the publication that a tenant with this history was served at time `at`, as far as known now."""
    begun = (entry for entry in newest_first if entry.at <= at)
    in_force = (entry for entry in begun if entry.rolled_back_at is None or entry.rolled_back_at > at)
    return next((entry for entry in in_force if not entry.ended(at)), None)


def publishable_until(entry: PatchEntry, *, override: str, by: str, valid_until: datetime | None) -> datetime | None:
    """Return when the publication expires: `valid_until` or the patch's own, whichever comes first; None for never.

    Args:
        entry: The patch.
        override: Reason to publish a patch that its gate did not accept.
        by: Who publishes; an override requires it.
        valid_until: Requested end.

    Raises:
        EditError: the gate did not accept the patch and there is no override with a name, or the end is in the past.
    """
    if entry.status != "accepted":
        _check_override(entry, override, by)
    if valid_until is not None and not is_instant(valid_until):
        raise EditError(
            "expected an end with a zone, like 2030-01-31T12:00:00Z, before the year 10000 in UTC, got "
            f"{valid_until.isoformat()}"
        )
    ends = min((time for time in (valid_until, entry.valid_until) if time is not None), default=None)
    if ends is not None and ends <= datetime.now(UTC):
        raise EditError(
            f"{short(entry.name)} would have ended at {ends.isoformat()} already; give a later end, or change its "
            "edits' valid_until and compile again"
        )
    return ends


def active(connection: Connection, tenant: str) -> Publication | None:
    """Return the tenant's current publication; None for the base model."""
    return served(history(connection, tenant), datetime.now(UTC))


def add(
    connection: Connection, tenant: str, name: str, *, why: str, override: bool, by: str, valid_until: datetime | None
) -> None:
    """Serve `name` to the tenant from now on."""
    row = {"tenant": tenant, "name": name, "at": datetime.now(UTC), "by": by, "why": why, "override": override}
    connection.execute(insert(tables.publications).values(**row, valid_until=valid_until))


def take_back(connection: Connection, tenant: str, to: str | None, *, why: str, by: str) -> Publication | None:
    """Roll back to the previous publication or to the earlier `to`; return the target, None for the base model.

    Expired publications are skipped.
    """
    p, now = tables.publications.c, datetime.now(UTC)
    standing = select(tables.publications).where(p.tenant == tenant, p.rolled_back_at.is_(None)).order_by(p.id.desc())
    valid = [(row.id, entry) for row in connection.execute(standing) if not (entry := _publication(row)).ended(now)]
    if not valid:
        raise EditError(f"tenant {tenant!r} is served the base model: there is nothing to roll back")
    after, target = next(((id, entry) for id, entry in valid[1:] if to in (None, entry.name)), (0, None))
    if target is None and to is not None:
        names = [entry.name for _, entry in valid[1:]]
        raise NotFound(f"{shown(to)} is not an earlier publication of tenant {tenant!r}", names[:3])
    undone = update(tables.publications).where(p.tenant == tenant, p.id > after, p.rolled_back_at.is_(None))
    connection.execute(undone.values(rolled_back_at=now, rolled_back_by=by, rolled_back_why=why))
    return target


def history(connection: Connection, tenant: str) -> list[Publication]:
    """Return the tenant's publications, newest first, including those that are rolled back."""
    p = tables.publications.c
    found = connection.execute(select(tables.publications).where(p.tenant == tenant).order_by(p.id.desc()))
    return [_publication(row) for row in found]


def standing(connection: Connection) -> dict[str, tuple[Publication, ...]]:
    """Return, by tenant, the publications that are not rolled back, newest first; omit tenants without any."""
    p = tables.publications.c
    found = select(tables.publications).where(p.rolled_back_at.is_(None)).order_by(p.id.desc())
    by_tenant: dict[str, tuple[Publication, ...]] = {}
    for publication in map(_publication, connection.execute(found)):
        by_tenant[publication.tenant] = (*by_tenant.get(publication.tenant, ()), publication)
    return by_tenant


def standing_names(connection: Connection, now: datetime) -> set[str]:
    """Return the names that any tenant is served at `now`, or could be after a rollback."""
    return set(connection.execute(select(tables.publications.c.name).where(_in_force(now))).scalars())


def who_may_be_served(connection: Connection, name: str, now: datetime) -> str | None:
    """Return a tenant that is served `name` at `now`, or could be after a rollback; None if there is none."""
    p = tables.publications.c
    tenant: str | None = connection.execute(select(p.tenant).where(p.name == name, _in_force(now)).limit(1)).scalar()
    return tenant


def _in_force(now: datetime) -> ColumnElement[bool]:
    """SQL condition: a publication is neither rolled back nor expired at `now`."""
    p = tables.publications.c
    return and_(p.rolled_back_at.is_(None), or_(p.valid_until.is_(None), p.valid_until > now))


def _publication(row: Row[Any]) -> Publication:
    fields = {key: value for key, value in row._mapping.items() if key != "id"}
    return Publication(**fields)


def _check_override(entry: PatchEntry, override: str, by: str) -> None:
    if not override:
        reason = f": {entry.reason}" if entry.reason else ""
        verdict = f"was rejected by its gate{reason}" if entry.status == "rejected" else "was never judged by its gate"
        raise EditError(
            f"{short(entry.name)} {verdict}; correct the patch and compile it again, or publish it with --override "
            "REASON --who NAME"
        )
    if not by:
        raise EditError(f"an override of the gate of {short(entry.name)} needs a name: give yours with --who")
