"""Notification of the registry's next change: PostgreSQL notifies, SQLite is polled many times a second."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

from vllm_edit.registry.database import Database
from vllm_edit.registry.revision import Revision

if TYPE_CHECKING:
    import psycopg

_POLL_S = 0.05
_LOOK_S = 1.0  # PostgreSQL is polled too: a proxy in between may drop notifications
_NOTICE_CLOSE_S = 0.1


class Waiting(Protocol):
    def wait(self, known: Revision, timeout_s: float) -> bool:
        """Return True as soon as the registry's revision differs; False after `timeout_s` or `close`.

        Raises:
            EditError: the registry cannot be reached.
        """

    def close(self) -> None:
        """Make `wait` return in every thread."""


def waiting(database: Database) -> Waiting:
    return Polling(database) if database.sqlite else Listening(database)


class Polling:
    def __init__(self, database: Database) -> None:
        self._database, self._closed = database, Event()

    def wait(self, known: Revision, timeout_s: float) -> bool:
        ends = time.monotonic() + timeout_s
        while self._database.revision().same(known):
            left = ends - time.monotonic()
            if left <= 0 or self._closed.wait(min(left, _POLL_S)):
                return False
        return True

    def close(self) -> None:
        self._closed.set()


class Listening:
    """PostgreSQL notifications. Each waiting thread has its own connection; idle connections are reused."""

    def __init__(self, database: Database) -> None:
        self._database, self._closed = database, Event()
        self._idle: list[psycopg.Connection[Any]] = []

    def wait(self, known: Revision, timeout_s: float) -> bool:
        import psycopg

        ends = time.monotonic() + timeout_s
        connection = self._take()
        try:
            while True:
                connection = connection or self._database.listen()
                # Read the revision after LISTEN: this read sees earlier changes, and later changes are notified.
                if not self._database.revision().same(known):
                    return True
                left = ends - time.monotonic()
                if left <= 0 or self._closed.is_set():
                    return False
                try:
                    self._hear(connection, min(left, _LOOK_S))
                except psycopg.OperationalError:  # the server closed it; reconnecting shows whether the server is back
                    connection.close()
                    connection = None
        finally:
            self._give_back(connection)

    def close(self) -> None:
        self._closed.set()
        while (connection := self._take()) is not None:
            connection.close()

    def _hear(self, connection: psycopg.Connection[Any], seconds: float) -> None:
        """Return on a notification, after `seconds`, or soon after `close`."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._closed.is_set():
            if list(connection.notifies(timeout=min(left, _NOTICE_CLOSE_S), stop_after=1)):
                return

    def _take(self) -> psycopg.Connection[Any] | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _give_back(self, connection: psycopg.Connection[Any] | None) -> None:
        if connection is not None:
            self._idle.append(connection)
        if self._closed.is_set():
            self.close()
