"""The registry's database: its schema, and the two kinds of transaction, one that reads and one that changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, make_url, select, update
from sqlalchemy.exc import DatabaseError, OperationalError

from vllm_edit.errors import EditError
from vllm_edit.store import migrations, tables

_BUSY_TIMEOUT_S = 30


class Database:
    """SQLite in WAL mode by default, any other by its SQLAlchemy URL."""

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

    def __str__(self) -> str:
        """The URL with its password hidden."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._usable(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def change(self) -> Iterator[Connection]:
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
            raise EditError(f"the registry {self} cannot be used: {error.orig}") from error

    def generation(self) -> int:
        with self.read() as connection:
            return int(connection.execute(select(tables.generation.c.value)).scalar_one())

    def _migrate(self) -> None:
        with self.read() as connection:
            current = migrations.is_current(connection)
        if not current:
            with self._usable(), self._writer.begin() as connection:
                migrations.upgrade(connection)


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
