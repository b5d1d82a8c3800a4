"""Running servers, and which of the registry's changes each has followed: known by their heartbeats.

Ages are told by the database's own clock, so the clocks of the servers' machines do not matter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update

from vllm_edit.store.database import Database
from vllm_edit.store.tables import servers

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


@dataclass(frozen=True)
class Acknowledged:
    """Which servers follow a generation by now, and which do not; names are `host:pid`."""

    generation: int
    seconds: float
    acknowledged: tuple[str, ...]
    missing: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        """As JSON tells it."""
        return {
            "generation": self.generation,
            "seconds": round(self.seconds, 4),
            "servers": self.acknowledged,
            "missing": self.missing,
        }


class Servers:
    """A registry's servers. Heartbeats are a log: the generation stays."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, id: str, *, host: str, pid: int, generation: int, drained: int) -> None:
        """Say that server `id` lives, and what it follows. Its first heartbeat sweeps those of servers long dead."""
        told = {"host": host, "pid": pid, "generation": generation, "drained": drained, "seen": self._database.clock}
        with self._database.log() as connection:
            again = connection.execute(update(servers).where(servers.c.id == id).values(**told))
            if not again.rowcount:
                connection.execute(insert(servers).values(id=id, **told))
                connection.execute(delete(servers).where(self._database.clock - servers.c.seen > _SWEPT_S))

    def leave(self, id: str) -> None:
        """Say that server `id` ends: nobody waits for it any more."""
        with self._database.log() as connection:
            connection.execute(delete(servers).where(servers.c.id == id))

    def live(self) -> list[ServerEntry]:
        """Servers that were seen within `LIVE_S`, by name."""
        return [entry for entry in self._known() if entry.live]

    def wait(self, generation: int, timeout_s: float, drained: bool = False) -> Acknowledged:
        """Return when every live server follows `generation`, or has `drained` up to it, or the time is up.

        One that falls silent meanwhile is missing: it may well go on serving. One that leaves is not.
        """
        started, awaited = time.monotonic(), set[str]()
        while True:
            known = self._known()
            awaited |= {entry.id for entry in known if entry.live}
            here = [entry for entry in known if entry.id in awaited]
            missing = [entry for entry in here if (entry.drained if drained else entry.generation) < generation]
            seconds = time.monotonic() - started
            if not missing or seconds >= timeout_s:
                follow = tuple(entry.name for entry in here if entry not in missing)
                return Acknowledged(generation, seconds, follow, tuple(entry.name for entry in missing))
            time.sleep(min(_POLL_S, timeout_s - seconds))

    def _known(self) -> list[ServerEntry]:
        s = servers.c
        ago = (self._database.clock - s.seen).label("seen_ago_s")
        wanted = select(s.id, s.host, s.pid, s.generation, s.drained, ago)
        with self._database.read() as connection:
            found = [ServerEntry(**row._mapping) for row in connection.execute(wanted)]
        return sorted(found, key=lambda entry: (entry.host, entry.pid, entry.id))
