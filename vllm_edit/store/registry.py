"""The registry: which patches exist and under which adapter id, and what each tenant is served.

One transaction per state change, and every change adds one to the generation within it. Callers get values, never rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import URL, Connection, Row, create_engine, delete, event, insert, make_url, select, update
from sqlalchemy.exc import DatabaseError, OperationalError

from vllm_edit.errors import EditError, NotFound
from vllm_edit.store import migrations, tables
from vllm_edit.store.names import check_tenant, nearest, short, shown, split_name

Status = Literal["ungated", "accepted", "rejected"]
_BUSY_TIMEOUT_S = 30


@dataclass(frozen=True)
class PatchEntry:
    """A stored patch as the registry knows it. A `rejected` one (its gate failed) is published only by override."""

    name: str
    patch: str
    digest: str
    adapter_id: int
    saved_at: datetime
    status: Status
    reason: str


@dataclass(frozen=True)
class Tenant:
    """Whom requests are for; `active` is the name of what they are served, None for the base model."""

    name: str
    created_at: datetime
    active: str | None


@dataclass(frozen=True)
class Publication:
    """One entry of a tenant's history."""

    tenant: str
    name: str
    at: datetime
    by: str
    why: str
    override: bool
    rolled_back_at: datetime | None
    rolled_back_by: str | None
    rolled_back_why: str | None

    @property
    def rolled_back(self) -> bool:
        return self.rolled_back_at is not None


class Registry:
    """Registry in a SQL database: SQLite in WAL mode by default, any other by its SQLAlchemy URL."""

    def __init__(self, url: str | URL) -> None:
        """Open, and bring the schema up to date."""
        self.url = make_url(url)
        sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = create_engine(self.url, connect_args={"timeout": _BUSY_TIMEOUT_S} if sqlite else {})
        # SQLite takes its write lock when a transaction begins: one that starts by reading could not be upgraded
        # while another process writes, and would fail instead of waiting.
        self._writer = self._engine.execution_options(vllm_edit_writes=True)
        if sqlite:
            event.listen(self._engine, "connect", _configure_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._migrate()

    def __repr__(self) -> str:
        return f"Registry({self.url.render_as_string(hide_password=True)!r})"

    def close(self) -> None:
        self._engine.dispose()

    # Patches

    def add_patch(self, name: str) -> PatchEntry:
        """Enter a patch, or mark a known one as saved again (it becomes its patch's newest; id and status stay)."""
        patch, digest = split_name(name)
        with self._change() as connection:
            known = tables.patches.c.name == name
            again = connection.execute(update(tables.patches).where(known).values(saved_at=datetime.now(UTC)))
            if not again.rowcount:
                row = {"name": name, "patch": patch, "digest": digest, "saved_at": datetime.now(UTC)}
                connection.execute(insert(tables.patches).values(**row, status="ungated", reason=""))
            return _patch_entry(connection.execute(select(tables.patches).where(known)).one())

    def remove_patch(self, name: str) -> None:
        """Forget a patch. Refused while a tenant could be served it, now or after a rollback."""
        with self._change() as connection:
            p = tables.publications.c
            live = select(p.tenant).where(p.name == name, p.rolled_back_at.is_(None)).limit(1)
            tenant = connection.execute(live).scalar()
            if tenant is not None:
                raise EditError(f"{short(name)} is in the history of tenant {tenant!r}, who may be rolled back to it")
            connection.execute(delete(tables.patches).where(tables.patches.c.name == name))

    def patch(self, name: str) -> PatchEntry:
        with self._read() as connection:
            return self._patch(connection, name)

    def patches(self) -> list[PatchEntry]:
        """All patches, the one saved last first."""
        p = tables.patches.c
        with self._read() as connection:
            found = connection.execute(select(tables.patches).order_by(p.saved_at.desc(), p.adapter_id.desc()))
            return [_patch_entry(row) for row in found]

    def set_status(self, name: str, status: Status, reason: str = "") -> None:
        """Record what the gate said of a patch. What is published stays published."""
        if status not in get_args(Status):
            raise EditError(f"expected a status among {', '.join(get_args(Status))}, got {shown(status)}")
        with self._change() as connection:
            self._patch(connection, name)
            where = tables.patches.c.name == name
            connection.execute(update(tables.patches).where(where).values(status=status, reason=reason))

    # Tenants and what they are served

    def create_tenant(self, name: str) -> Tenant:
        check_tenant(name)
        with self._change() as connection:
            if connection.execute(select(tables.tenants).where(tables.tenants.c.name == name)).first() is not None:
                raise EditError(f"there is a tenant {name!r} already; choose another name")
            created_at = datetime.now(UTC)
            connection.execute(insert(tables.tenants).values(name=name, created_at=created_at))
            return Tenant(name, created_at, None)

    def tenants(self) -> list[Tenant]:
        """All tenants by name, each with its active patch."""
        t = tables.tenants.c
        with self._read() as connection:
            found = connection.execute(select(tables.tenants).order_by(t.name)).all()
            return [Tenant(row.name, row.created_at, _active(connection, row.name)) for row in found]

    def active(self, tenant: str) -> str | None:
        """The name that the tenant is served, None for the base model."""
        with self._read() as connection:
            self._tenant(connection, tenant)
            return _active(connection, tenant)

    def publish(self, tenant: str, name: str, why: str = "", override: bool = False, by: str = "") -> str:
        """Serve `name` to the tenant from now on, and return it. Publishing what is active already changes nothing.

        Raises:
            EditError: the patch was rejected by its gate and `override` is not set.
        """
        with self._change() as connection:
            self._tenant(connection, tenant)
            entry = self._patch(connection, name)
            if entry.status == "rejected" and not override:
                reason = f": {entry.reason}" if entry.reason else ""
                raise EditError(
                    f"{short(name)} was rejected by its gate{reason}; mend the patch and compile it again, "
                    "or publish it with --override and a reason"
                )
            if _active(connection, tenant) != name:
                told = {"by": by, "why": why, "override": override and entry.status == "rejected"}
                row = {"tenant": tenant, "name": name, "at": datetime.now(UTC), **told}
                connection.execute(insert(tables.publications).values(**row))
            return name

    def rollback(self, tenant: str, to: str | None = None, why: str = "", by: str = "") -> str | None:
        """Serve the tenant what it had before (or the earlier `to` of its history), and return that name.

        Before the first publication there was the base model: then the answer is None.

        Raises:
            EditError: the tenant is served no patch, or `to` is not in its history.
        """
        p = tables.publications.c
        with self._change() as connection:
            self._tenant(connection, tenant)
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

    def history(self, tenant: str) -> list[Publication]:
        """The tenant's publications, newest first, rolled-back ones included."""
        p = tables.publications.c
        with self._read() as connection:
            self._tenant(connection, tenant)
            found = connection.execute(select(tables.publications).where(p.tenant == tenant).order_by(p.id.desc()))
            return [_publication(row) for row in found]

    def published(self) -> set[str]:
        """Names that some tenant is served, or could be after a rollback."""
        p = tables.publications.c
        with self._read() as connection:
            return set(connection.execute(select(p.name).where(p.rolled_back_at.is_(None))).scalars())

    def generation(self) -> int:
        """Number of changes so far; equal numbers mean that nothing changed in between."""
        with self._read() as connection:
            return int(connection.execute(select(tables.generation.c.value)).scalar_one())

    # Transactions

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._usable(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _change(self) -> Iterator[Connection]:
        """A transaction that changes state. Raising generation first makes writers of any database queue up on it."""
        with self._usable(), self._writer.begin() as connection:
            value = tables.generation.c.value
            connection.execute(update(tables.generation).values(value=value + 1))
            yield connection

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """A database that is gone, full, locked for too long or no database is the operator's to mend, in one line."""
        try:
            yield
        except DatabaseError as error:
            # Subclasses besides these (a constraint, a bad statement) are our own defects. "Not a database" has none.
            if type(error) not in (OperationalError, DatabaseError):
                raise
            url = self.url.render_as_string(hide_password=True)
            raise EditError(f"the registry {url} cannot be used: {error.orig}") from error

    def _migrate(self) -> None:
        with self._read() as connection:
            current = migrations.is_current(connection)
        if not current:
            with self._usable(), self._writer.begin() as connection:
                migrations.upgrade(connection)

    def _patch(self, connection: Connection, name: str) -> PatchEntry:
        row = connection.execute(select(tables.patches).where(tables.patches.c.name == name)).first()
        if row is None:
            names = connection.execute(select(tables.patches.c.name)).scalars()
            raise NotFound(f"no compiled patch {shown(name)} in the registry", nearest(name, names))
        return _patch_entry(row)

    def _tenant(self, connection: Connection, name: str) -> None:
        names = connection.execute(select(tables.tenants.c.name)).scalars().all()
        if name not in names:
            raise NotFound(f"no tenant {shown(name)}", nearest(name, names))


def _active(connection: Connection, tenant: str) -> str | None:
    p = tables.publications.c
    newest = select(p.name).where(p.tenant == tenant, p.rolled_back_at.is_(None)).order_by(p.id.desc()).limit(1)
    name: str | None = connection.execute(newest).scalar()
    return name


def _patch_entry(row: Row[Any]) -> PatchEntry:
    return PatchEntry(row.name, row.patch, row.digest, row.adapter_id, row.saved_at, row.status, row.reason)


def _publication(row: Row[Any]) -> Publication:
    fields = {key: value for key, value in row._mapping.items() if key != "id"}
    return Publication(**fields)


def _configure_sqlite(dbapi_connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself, or DDL and BEGIN IMMEDIATE would not be ours to place.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("vllm_edit_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
