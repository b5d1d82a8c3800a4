"""The registry's database: its schema, and three kinds of transaction: `read`, `change` and `log`.

The first transaction connects, not the constructor: a server must be able to restart while the registry is down.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Table,
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
from sqlalchemy.dialects import postgresql, sqlite
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
from vllm_edit.registry import migrations, revision, tables
from vllm_edit.registry.revision import Revision

if TYPE_CHECKING:
    import psycopg

CONNECTIONS = 48
"""Maximum number of a process's connections for requests: more than a server has request threads, so that no thread
waits for a connection while others wait for a lock."""
FOLLOWING = 4
"""Extra connections for watchers and heartbeats, so that a server does not appear dead while all other connections wait
for a lock."""

_IDLE = 5  # connections that stay open while unused
_CHECKOUT_TIMEOUT_S = 30.0
_ALL_IN_USE = "all connections of this process to it are in use; try again later"
_UNUSABLE = (OperationalError, DatabaseError, InterfaceError, InternalError, DBAPIError)
"""Errors that the database causes. Other classes (a constraint, a bad statement) are defects of this package."""
# PostgreSQL: the role lacks a privilege, the server is read-only, a table was dropped.
_FORBIDDEN = ("42501", "25006", "42P01")
_HELD = (
    "its lock for removing patches was not free in time; wait until the other vllm-edit gc ends, or, if none runs, let "
    "PgBouncer pool sessions, not transactions"
)
_BUSY_TIMEOUT_S = 30
_STATEMENT_TIMEOUT_S = 60
_ALONE_TIMEOUT_S = 600  # who holds the lock of `alone` may delete thousands of objects
_CONNECT_TIMEOUT_S = 5
# Detect an unreachable database host after some seconds, not after TCP's two hours.
_PATIENCE = {
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# An abandoned lock or an endless statement must not block changes.
_OVERTIME = f"-c lock_timeout={_BUSY_TIMEOUT_S}s -c statement_timeout={_STATEMENT_TIMEOUT_S}s"
_CHANNEL = "vllm_edit_registry"  # PostgreSQL's notification channel, in this database only
_SECRETS = ("sslpassword", "oauth_client_secret")  # options of libpq that have no place of their own in a URL
# Numbers of PostgreSQL's advisory locks: the first serializes migrations, the second is the lock of `alone`.
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
        """Configure the database; the first transaction connects and brings the schema up to date.

        Args:
            url: SQLAlchemy URL of a SQLite file or a PostgreSQL database.
            before_new: Called before an empty database gets its schema; if it raises, the database stays empty.
            check: Called once the schema is current, before any other read; while it raises, the database is not used.

        Raises:
            EditError: the URL or one of its options cannot be used.
        """
        self.url = _checked(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = _engine(self.url, self.sqlite)
        self._working = threading.BoundedSemaphore(CONNECTIONS)
        self._before_new, self._check = before_new, check
        self._migrated, self._migrating = False, threading.Lock()
        # SQLite takes its write lock when a transaction begins: a transaction that starts as a reader could not be
        # upgraded while another process writes, and would fail instead of waiting.
        self._writer = self._engine.execution_options(vllm_edit_writes=True)
        # A transaction reads one consistent state. SQLite's readers always do.
        one_state = {} if self.sqlite else {"isolation_level": "REPEATABLE READ"}
        self._reader = self._engine.execution_options(**one_state)
        if self.sqlite:
            event.listen(self._engine, "connect", _configure_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    def __str__(self) -> str:
        """The URL with its passwords hidden."""
        return without_secrets(self.url)

    @property
    def clock(self) -> ColumnElement[float]:
        """SQL expression: seconds since 1970 by the database's own clock, which is the same for every machine."""
        if self.sqlite:
            return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Float)
        return cast(extract("epoch", func.clock_timestamp()), Float)

    def now(self, connection: Connection) -> datetime:
        """Return the time by the database's own clock."""
        seconds: float = connection.execute(select(self.clock)).scalar_one()
        return datetime.fromtimestamp(seconds, UTC)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def read(self, *, following: bool = False) -> Iterator[Connection]:
        """Open a read-only transaction. `following`: use one of the connections reserved for watchers."""
        with self._ready(following), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def change(self) -> Iterator[Connection]:
        """Open a transaction that changes state. It increments the generation first, which serializes writers."""
        with self._ready(), self._writer.begin() as connection:
            value = tables.generation.c.value
            connection.execute(update(tables.generation).values(value=value + 1, token=secrets.token_hex(16)))
            if not self.sqlite:
                connection.execute(select(func.pg_notify(_CHANNEL, "")))  # PostgreSQL sends it with the commit
            yield connection

    @contextmanager
    def log(self, *, following: bool = False) -> Iterator[Connection]:
        """Open a transaction that adds to a log: servers need not follow it, so the generation stays."""
        with self._ready(following), self._writer.begin() as connection:
            yield connection

    def alone(self) -> AbstractContextManager[object]:
        """Hold a lock that one process or thread at a time can hold on this database.

        Reads and changes are not blocked. The lock is released when its process dies.

        Raises:
            Unavailable: the database, or its folder, cannot be used, or a lock of PostgreSQL is not free for
                `_ALONE_TIMEOUT_S`.
        """
        if self.sqlite:
            place = Path(self.url.database or "")
            return LocalFiles(place.parent).locked(place.name)
        # A proxy that pools transactions keeps the session of a closed connection, with this lock.
        limited = f"BEGIN; SET LOCAL lock_timeout = '{_ALONE_TIMEOUT_S}s'"
        return self._apart(f"{limited}; SELECT pg_advisory_lock({_ALONE}); COMMIT")

    @contextmanager
    def _ready(self, following: bool = False) -> Iterator[None]:
        """Reserve a connection, migrate on first use and translate driver errors (`_usable`)."""
        with self._usable(), nullcontext() if following else self._turn():
            if not self._migrated:
                self._migrate()
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Reserve one of the connections that are not for watchers."""
        if not self._working.acquire(timeout=_CHECKOUT_TIMEOUT_S):
            raise self._cannot_be_used(_ALL_IN_USE)
        try:
            yield
        finally:
            self._working.release()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn operational database errors (unreachable, full, forbidden, locked) into a one-line `Unavailable`."""
        try:
            yield
        except PoolTimeout as error:
            raise self._cannot_be_used(_ALL_IN_USE) from error
        except DBAPIError as error:
            # An error without a statement belongs to the connection: it was lost, or the URL has an unknown option.
            known = type(error) in _UNUSABLE or error.statement is None
            if not known and getattr(error.orig, "sqlstate", None) not in _FORBIDDEN:
                raise
            raise self._cannot_be_used(error.orig) from error

    def _cannot_be_used(self, why: object) -> Unavailable:
        full = "; its disk is full" if self._without_room() else self._of_its_folder()
        return Unavailable(f"the registry {self} cannot be used: {' '.join(str(why).split())}{full}")

    def _of_its_folder(self) -> str:
        """What to do if the folder of an SQLite file is not writable; SQLite only says that it cannot open the file."""
        folder = Path(self.url.database or "").parent
        if not self.sqlite or not folder.is_dir() or os.access(folder, os.W_OK):
            return ""
        return (
            f"; its folder {folder} is not writable, and SQLite writes there to read too: make it writable, or copy "
            "the store to a folder that is"
        )

    def _without_room(self) -> bool:
        """True if the disk of an SQLite file is full. SQLite then reports only "disk I/O error" in some cases."""
        if not self.sqlite or not self.url.database:
            return False
        try:
            return shutil.disk_usage(Path(self.url.database).parent).free == 0
        except OSError:
            return False

    def revision(self) -> Revision:
        with self.read(following=True) as connection:
            return revision.current(connection)

    def listen(self) -> psycopg.Connection[Any]:
        """Open a separate PostgreSQL connection that receives a notification of every later change."""
        return self._apart(f"LISTEN {_CHANNEL}")

    def _apart(self, statement: str) -> psycopg.Connection[Any]:
        """Open a PostgreSQL connection outside the pool and without our time limits, and execute `statement` on it.

        The statement's effect lasts until the connection is closed.
        """
        import psycopg

        args, options = self._engine.dialect.create_connect_args(self.url)
        try:
            connection = psycopg.connect(*args, **{**options, **_PATIENCE}, autocommit=True)
        except psycopg.Error as error:
            raise self._cannot_be_used(error) from error
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            connection.close()
            held = isinstance(error, psycopg.errors.LockNotAvailable)
            raise self._cannot_be_used(_HELD if held else error) from error
        return connection

    def problems(self) -> list[str]:
        """Problems that SQLite finds in its file, one line each. PostgreSQL is not checked."""
        if not self.sqlite:
            return []
        with self.read() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        return [f"the registry {self} is damaged: {' '.join(line.split())}" for line in found if line != "ok"]

    def _migrate(self) -> None:
        """Bring the schema up to date. Only migrations are serialized: a check of the schema never waits for one."""
        if self._is_missing():
            self._before_new()  # SQLite creates the file when it connects, so the refusal must come first
        with self._reader.begin() as connection:
            current = migrations.is_current(connection)
            if current:
                self._check(connection)
        if not current:
            with self._migrating, self._writer.begin() as connection:
                if not self.sqlite:
                    connection.execute(text("SET LOCAL statement_timeout = 0"))  # large tables migrate slowly
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATING})
                if migrations.is_empty(connection):
                    self._before_new()
                migrations.upgrade(connection)
                self._check(connection)
        self._migrated = True

    def _is_missing(self) -> bool:
        """True if the database is an SQLite file, named by its path, that SQLite would create in an existing folder."""
        file = self.url.database or ""
        return self.sqlite and not file.startswith("file:") and not os.path.exists(file) and Path(file).parent.is_dir()


def add_unknown(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, object]], unique: Sequence[str] = ()
) -> None:
    """Insert the rows whose primary key, or whose `unique` columns, are not in `table` yet; others stay unchanged.

    A batch is retried if its commit was not acknowledged, so inserts must be idempotent.
    """
    if rows:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        elements = list(unique) or [column.name for column in table.primary_key]
        connection.execute(insert(table).on_conflict_do_nothing(index_elements=elements), rows)


def without_secrets(url: URL) -> str:
    """The URL as messages show it, with its passwords hidden."""
    hidden = {option: "hidden" for option in _SECRETS if option in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def _checked(url: str | URL) -> URL:
    """Set the driver that this package installs, and the password in its own place; raise `EditError` for an
    unsupported database."""
    expected = "expected the URL of the registry's database, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    try:
        made = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        raise EditError(f"{expected}, got an invalid URL") from None  # not shown: it may hold a password
    backend = made.get_backend_name()
    if backend == "postgresql":
        made = made.set(drivername="postgresql+psycopg")
        if given := made.normalized_query.get("password"):  # libpq's other spelling, which SQLAlchemy would show
            made = made.difference_update_query(["password"]).set(password=given[-1])
        return made
    if backend != "sqlite":
        raise EditError(f"{expected}, got a URL for {backend}")
    if made.database in (None, "", ":memory:"):
        raise EditError(f"{expected}, got a database in memory, which no other process or thread would see")
    return made


def _engine(url: URL, sqlite: bool) -> Engine:
    pool: dict[str, Any] = {"poolclass": QueuePool, "pool_timeout": _CHECKOUT_TIMEOUT_S}
    pool |= {"pool_size": _IDLE, "max_overflow": CONNECTIONS + FOLLOWING - _IDLE}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SAWarning)  # raised for unknown options, which would be ignored
            if sqlite:
                return create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S}, **pool)
            # A restart of the database leaves dead connections in the pool: test each before use.
            return create_engine(url, connect_args={**_PATIENCE, "options": _options(url)}, pool_pre_ping=True, **pool)
    except (SAWarning, ArgumentError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise EditError(f"the registry {without_secrets(url)} has an invalid option: {reason}; remove it") from error
    except ModuleNotFoundError as error:
        raise EditError(f"a registry in PostgreSQL needs {error.name}: install vllm-edit[postgres]") from error


def _options(url: URL) -> str:
    """libpq options: our time limits, then the operator's options, which override them."""
    given = url.query.get("options", os.environ.get("PGOPTIONS", ""))
    return " ".join((_OVERTIME, *([given] if isinstance(given, str) else given)))


def _configure_sqlite(dbapi_connection: sqlite3.Connection, _record: object) -> None:
    # The driver must not begin transactions itself: DDL needs to be transactional, and writers BEGIN IMMEDIATE.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("vllm_edit_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
