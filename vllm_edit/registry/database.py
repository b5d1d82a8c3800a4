"""The registry's database: its schema, and the kinds of transaction: one that reads, one that changes, one that logs.

Nothing is connected before the first of them: what only names a registry, as a server that is restarted does, must not
need it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Float,
    cast,
    create_engine,
    event,
    extract,
    func,
    literal_column,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    SAWarning,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from vllm_edit.errors import EditError, Unavailable
from vllm_edit.files import LocalFiles
from vllm_edit.registry import migrations, tables

if TYPE_CHECKING:
    import psycopg

CONNECTIONS = 48
"""Most connections that a process uses at once for what it is asked to do: more than a server has threads for that, so
that none waits for a connection while others wait for a lock."""
FOLLOWING = 4
"""Connections besides, for those who follow the registry and say that they live: while all others wait for a lock, a
server must not be taken for dead."""

_KEPT = 5  # connections that stay open while nobody uses them
_CHECKOUT_TIMEOUT_S = 30.0
_ALL_IN_USE = "all connections of this process to it are in use; try again later"
_UNUSABLE = (OperationalError, DatabaseError, InterfaceError, InternalError, DBAPIError)
"""What the database itself is to blame for. Other classes (a constraint, a bad statement) are our own defects."""
# PostgreSQL: the role lacks a privilege, the server only reads, somebody dropped our tables.
_FORBIDDEN = ("42501", "25006", "42P01")
_BUSY_TIMEOUT_S = 30
_STATEMENT_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 5
# A machine that vanished without a word is given up after some seconds, not after TCP's two hours.
_PATIENCE = {
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# A lock that somebody left open, or a statement that takes for ever, must not hang changes.
_OVERTIME = f"-c lock_timeout={_BUSY_TIMEOUT_S}s -c statement_timeout={_STATEMENT_TIMEOUT_S}s"
_CHANNEL = "vllm_edit_registry"  # where PostgreSQL tells of changes, in this database only
# Numbers of PostgreSQL's advisory locks: processes that open a new database queue up on the first.
_MIGRATING, _ALONE = 0x766C6C6D, 0x766C6C6E


class Database:
    """SQLite in WAL mode by default, PostgreSQL by its URL."""

    def __init__(
        self,
        url: str | URL,
        before_new: Callable[[], None] = lambda: None,
        *,
        check: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """The first transaction brings the schema up to date.

        before_new: called before an empty database gets its schema; what it raises keeps it empty. check: called once
        the schema is current, before anything else is read; while it raises, the database is not used.
        """
        self.url = _checked(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = _engine(self.url, self.sqlite)
        self._working = threading.BoundedSemaphore(CONNECTIONS)
        self._before_new, self._check = before_new, check
        self._migrated, self._migrating = False, threading.Lock()
        # SQLite takes its write lock when a transaction begins: one that starts by reading could not be upgraded
        # while another process writes, and would fail instead of waiting.
        self._writer = self._engine.execution_options(vllm_edit_writes=True)
        # What one transaction reads is one state. SQLite's readers see that anyway.
        one_state = {} if self.sqlite else {"isolation_level": "REPEATABLE READ"}
        self._reader = self._engine.execution_options(**one_state)
        if self.sqlite:
            event.listen(self._engine, "connect", _configure_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    def __str__(self) -> str:
        """The URL with its password hidden."""
        return self.url.render_as_string(hide_password=True)

    @property
    def clock(self) -> ColumnElement[float]:
        """Seconds since 1970 in a statement: by the database's own clock, which is the same for every machine."""
        if self.sqlite:
            return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Float)
        return cast(extract("epoch", func.clock_timestamp()), Float)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def read(self, *, following: bool = False) -> Iterator[Connection]:
        """A transaction that only reads. following: by one of the connections that are kept for this."""
        with self._ready(following), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def change(self) -> Iterator[Connection]:
        """A transaction that changes state. Raising generation first makes writers of any database queue up on it."""
        with self._ready(), self._writer.begin() as connection:
            value = tables.generation.c.value
            connection.execute(update(tables.generation).values(value=value + 1))
            if not self.sqlite:
                connection.execute(select(func.pg_notify(_CHANNEL, "")))  # sent by the commit, if it comes to that
            yield connection

    @contextmanager
    def log(self, *, following: bool = False) -> Iterator[Connection]:
        """A transaction that adds to a log: nothing that servers watch changes, so generation stays."""
        with self._ready(following), self._writer.begin() as connection:
            yield connection

    def alone(self) -> AbstractContextManager[object]:
        """While it lasts no other process or thread is in `alone` of this database; reading and changing it go on. One
        that dies gives it up.

        Raises:
            Unavailable: the database, or its folder, cannot be used.
        """
        if self.sqlite:
            place = Path(self.url.database or "")
            return LocalFiles(place.parent).locked(place.name)
        return self._apart(f"SELECT pg_advisory_lock({_ALONE})")

    @contextmanager
    def _ready(self, following: bool = False) -> Iterator[None]:
        """The schema is current, there is a connection to use, and what fails is told as `_usable` tells it."""
        with self._usable(), nullcontext() if following else self._turn():
            if not self._migrated:
                self._migrate()
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of the connections that are not kept for following."""
        if not self._working.acquire(timeout=_CHECKOUT_TIMEOUT_S):
            raise self._cannot_be_used(_ALL_IN_USE)
        try:
            yield
        finally:
            self._working.release()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """A database that is gone, full, forbidden, locked too long or none is the operator's to mend, in one line."""
        try:
            yield
        except PoolTimeout as error:
            raise self._cannot_be_used(_ALL_IN_USE) from error
        except DBAPIError as error:
            # Without a statement it is the connection's: it is lost, or the URL has an option that nobody knows.
            known = type(error) in _UNUSABLE or error.statement is None
            if not known and getattr(error.orig, "sqlstate", None) not in _FORBIDDEN:
                raise
            raise self._cannot_be_used(error.orig) from error

    def _cannot_be_used(self, why: object) -> Unavailable:
        return Unavailable(f"the registry {self} cannot be used: {' '.join(str(why).split())}")

    def generation(self) -> int:
        with self.read(following=True) as connection:
            return int(connection.execute(select(tables.generation.c.value)).scalar_one())

    def listen(self) -> psycopg.Connection[Any]:
        """PostgreSQL: a connection of its own on which every change from now on is notified."""
        return self._apart(f"LISTEN {_CHANNEL}")

    def _apart(self, statement: str) -> psycopg.Connection[Any]:
        """PostgreSQL: a connection of no pool and without our time limits, on which the statement holds until it is
        closed."""
        import psycopg

        args, options = self._engine.dialect.create_connect_args(self.url)
        try:
            connection = psycopg.connect(*args, **{**options, **_PATIENCE}, autocommit=True)
            connection.execute(statement)
        except psycopg.Error as error:
            raise self._cannot_be_used(error) from error
        return connection

    def problems(self) -> list[str]:
        """What SQLite finds wrong with its file, one line each. PostgreSQL looks after itself."""
        if not self.sqlite:
            return []
        with self.read() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        return [f"the registry {self} is damaged: {' '.join(one.split())}" for one in found if one != "ok"]

    def _migrate(self) -> None:
        """Bring the schema up to date. Only writers queue up: many threads may find the database gone at once."""
        with self._reader.begin() as connection:
            current = migrations.is_current(connection)
            if current:
                self._check(connection)
        if not current:
            with self._migrating, self._writer.begin() as connection:
                if not self.sqlite:
                    connection.execute(text("SET LOCAL statement_timeout = 0"))  # large tables take their time
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATING})
                if migrations.is_empty(connection):
                    self._before_new()
                migrations.upgrade(connection)
                self._check(connection)
        self._migrated = True


def _checked(url: str | URL) -> URL:
    """The URL with the driver that we bring; raises `EditError` for one of a database that we do not know."""
    expected = "expected the URL of the registry's database, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    try:
        made = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise EditError(f"{expected}, got one that cannot be read") from None  # not shown: it may hold a password
    backend = made.get_backend_name()
    if backend == "postgresql":
        return made.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise EditError(f"{expected}, got one for {backend}")
    if made.database in (None, "", ":memory:"):
        raise EditError(f"{expected}, got one in memory, which no other process or thread would see")
    return made


def _engine(url: URL, sqlite: bool) -> Engine:
    pool: dict[str, Any] = {"poolclass": QueuePool, "pool_timeout": _CHECKOUT_TIMEOUT_S}
    pool |= {"pool_size": _KEPT, "max_overflow": CONNECTIONS + FOLLOWING - _KEPT}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SAWarning)  # that an option is unknown, and ignored
            if sqlite:
                return create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S}, **pool)
            # A server that was restarted leaves dead connections in the pool: they are tried before they are used.
            return create_engine(url, connect_args={**_PATIENCE, "options": _options(url)}, pool_pre_ping=True, **pool)
    except (SAWarning, ArgumentError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise EditError(f"the registry {url} has an option that cannot be used: {reason}; leave it out") from error
    except ModuleNotFoundError as error:
        raise EditError(f"a registry in PostgreSQL needs {error.name}: install vllm-edit[postgres]") from error


def _options(url: URL) -> str:
    """libpq's: our limits, then what the operator gives, which comes later and so holds."""
    given = url.query.get("options", os.environ.get("PGOPTIONS", ""))
    return " ".join((_OVERTIME, *([given] if isinstance(given, str) else given)))


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
