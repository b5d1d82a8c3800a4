"""Running servers, and which of the registry's changes each has followed: known by their heartbeats.

Ages are told by the database's own clock, so the clocks of the servers' machines do not matter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import nearest, shown
from vllm_edit.registry.changes import Changes
from vllm_edit.registry.database import Database
from vllm_edit.registry.tables import servers

LIVE_S = 5.0
"""A server that was not seen for so long has died, or cannot reach the registry."""

_POLL_S = 0.005
_SWEPT_S = 24 * 3600.0


@dataclass(frozen=True)
class ServerEntry:
    """A server's last heartbeat.

    generation: the state of the registry that it decides requests from. drained: up to this one, adapters of patches
    that were removed have left its engine and its disk. seen_ago_s: how old the heartbeat is.
    """

    id: str
    host: str
    pid: int
    generation: int
    drained: int
    seen_ago_s: float

    @property
    def name(self) -> str:
        """As people know it."""
        return f"{self.host}:{self.pid}"

    @property
    def live(self) -> bool:
        # A clock that was set back leaves heartbeats in the future: those are old too.
        return abs(self.seen_ago_s) <= LIVE_S

    @property
    def silent(self) -> bool:
        """It did not leave and is not heard of: it died, or serves on without the registry."""
        return not self.live and self.seen_ago_s <= _SWEPT_S


@dataclass(frozen=True)
class Acknowledged:
    """Which servers follow a generation by now, and which do not; names are `host:pid`.

    silent: those that nobody waited for, as they were not heard of before either, and that may serve on by an older
    state. silent_s: for how long none of them was heard of.
    """

    generation: int
    seconds: float
    acknowledged: tuple[str, ...]
    missing: tuple[str, ...]
    silent: tuple[str, ...]
    silent_s: float = 0.0

    def as_record(self) -> dict[str, Any]:
        """As JSON tells it."""
        return {
            "generation": self.generation,
            "seconds": round(self.seconds, 4),
            "servers": self.acknowledged,
            "missing": self.missing,
            "silent": self.silent,
        }


class Servers:
    """A registry's servers. Heartbeats are a log: the generation stays."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes

    def beat(self, id: str, *, host: str, pid: int, generation: int, drained: int) -> None:
        """Say that server `id` lives, and what it follows. Its first heartbeat sweeps those of servers long dead."""
        told = {"host": host, "pid": pid, "generation": generation, "drained": drained, "seen": self._database.clock}
        with self._database.log(following=True) as connection:
            again = connection.execute(update(servers).where(servers.c.id == id).values(**told))
            if not again.rowcount:
                connection.execute(insert(servers).values(id=id, **told))
                connection.execute(delete(servers).where(self._database.clock - servers.c.seen > _SWEPT_S))

    def leave(self, id: str) -> None:
        """Say that server `id` ends: nobody waits for it any more."""
        with self._database.log(following=True) as connection:
            connection.execute(delete(servers).where(servers.c.id == id))

    def forget(self, name: str, *, why: str = "", by: str = "") -> None:
        """Say that the silent server `name` (host:pid) has died: no change names it any more. Audited. One that lives
        all the same is known again by its next heartbeat.

        Raises:
            NotFound: no server of this name is known.
            EditError: it is running.
        """
        with self._changes.make("server.forget", by=by, why=why) as change:
            known = self._known(change.connection)
            named = [entry for entry in known if entry.name == name]
            silent = [entry for entry in named if not entry.live]
            if not named:
                choices = [entry.name for entry in known if entry.silent]
                raise NotFound(f"no server {shown(name)} is known", nearest(name, choices))
            if not silent:
                raise EditError(
                    f"expected a server that is silent, {name} is running: stop it, and it leaves by itself"
                )
            gone = servers.c.id.in_([entry.id for entry in silent])
            since = func.abs(self._database.clock - servers.c.seen) > LIVE_S  # it may be back in this moment
            change.connection.execute(delete(servers).where(gone, since))
            change.tells(silent, None)

    def live(self) -> list[ServerEntry]:
        """Servers that were seen within `LIVE_S`, by name."""
        return [entry for entry in self._read() if entry.live]

    def known(self) -> list[ServerEntry]:
        """Servers that are live or silent, by name."""
        return [entry for entry in self._read() if entry.live or entry.silent]

    def wait(self, generation: int, timeout_s: float, drained: bool = False) -> Acknowledged:
        """Return when every live server follows `generation`, or has `drained` up to it, or the time is up.

        One that falls silent meanwhile is missing: it may well go on serving. One that leaves is not. One that was
        silent before is not waited for, but named.
        """
        started, awaited = time.monotonic(), set[str]()
        while True:
            known = self._read()
            awaited |= {entry.id for entry in known if entry.live}
            here = [entry for entry in known if entry.id in awaited]
            behind = [entry for entry in known if (entry.drained if drained else entry.generation) < generation]
            missing = [entry for entry in behind if entry in here]
            seconds = time.monotonic() - started
            if not missing or seconds >= timeout_s:
                follow = tuple(entry.name for entry in here if entry not in missing)
                silent = [entry for entry in behind if entry.silent and entry not in here]
                return Acknowledged(
                    generation,
                    seconds,
                    follow,
                    missing=tuple(entry.name for entry in missing),
                    silent=tuple(entry.name for entry in silent),
                    silent_s=min((abs(entry.seen_ago_s) for entry in silent), default=0.0),
                )
            time.sleep(min(_POLL_S, timeout_s - seconds))

    def _read(self) -> list[ServerEntry]:
        with self._database.read() as connection:
            return self._known(connection)

    def _known(self, connection: Connection) -> list[ServerEntry]:
        s = servers.c
        ago = (self._database.clock - s.seen).label("seen_ago_s")
        wanted = select(s.id, s.host, s.pid, s.generation, s.drained, ago)
        found = [ServerEntry(**row._mapping) for row in connection.execute(wanted)]
        return sorted(found, key=lambda entry: (entry.host, entry.pid, entry.id))
