"""Running servers, and the generation of the registry that each has applied, as their heartbeats report it.

The database's own clock measures ages, so the clocks of the servers' machines do not matter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, and_, case, delete, func, insert, select, update

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import nearest, shown
from vllm_edit.registry import revision
from vllm_edit.registry.database import Database
from vllm_edit.registry.revision import Revision
from vllm_edit.registry.seen import Seen
from vllm_edit.registry.server_entry import LIVE_S, SWEPT_S, ServerEntry
from vllm_edit.registry.tables import servers
from vllm_edit.registry.transactions import Changes

_POLL_S = 0.005


@dataclass(frozen=True)
class Acknowledged:
    """The servers that follow a generation, and those that do not; names are `host:pid`.

    Attributes:
        generation: The generation that was waited for.
        seconds: Duration of the wait.
        acknowledged: Servers that follow the generation.
        missing: Live servers that do not follow it yet.
        silent: Servers that were silent from the start, so that nothing waited for them; they may still serve an older
            state.
        silent_s: Age in seconds of the latest heartbeat of a silent server.
    """

    generation: int
    seconds: float
    acknowledged: tuple[str, ...]
    missing: tuple[str, ...]
    silent: tuple[str, ...]
    silent_s: float = 0.0

    def as_record(self) -> AcknowledgedRecord:
        return AcknowledgedRecord(
            self.generation, round(self.seconds, 4), self.acknowledged, missing=self.missing, silent=self.silent
        )


@dataclass(frozen=True)
class AcknowledgedRecord:
    """`Acknowledged` as JSON shows it; `servers` are those that follow the generation."""

    generation: int
    seconds: float
    servers: tuple[str, ...]
    missing: tuple[str, ...]
    silent: tuple[str, ...]


class Servers:
    """A registry's servers. Heartbeats are a log: the generation stays."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes

    def beat(
        self,
        id: str,
        *,
        host: str,
        pid: int,
        generation: int,
        drained: int | None,
        token: str | None = None,
        before: Revision | None = None,
    ) -> None:
        """Write a heartbeat of server `id`. Its first heartbeat deletes those of servers that died long ago.

        Args:
            id: The server.
            host: Its machine.
            pid: Its process.
            generation: Generation of the state that it decides requests from.
            drained: Generation up to which it has drained removed patches. None: not up to this state, but as far as
                its heartbeat before. -1, as far as nothing, if the registry does not have that heartbeat: then it may
                have lost the state that the server drained patches for.
            token: Token of the state that it decides requests from.
            before: Revision of its heartbeat before.
        """
        row: dict[str, object] = {"host": host, "pid": pid, "generation": generation, "token": token}
        row |= {"seen": self._database.clock}
        s, last = servers.c, before or Revision(-1)
        there = and_(s.generation == last.generation, s.token.is_not_distinct_from(last.token))
        up_to = case((there, s.drained), else_=-1) if drained is None else drained
        with self._database.log(following=True) as connection:
            again = connection.execute(update(servers).where(s.id == id).values(**row, drained=up_to))
            if not again.rowcount:
                new = -1 if drained is None else drained
                connection.execute(insert(servers).values(id=id, **row, drained=new))
                connection.execute(delete(servers).where(self._database.clock - s.seen > SWEPT_S))

    def leave(self, id: str) -> None:
        """Delete the heartbeat of server `id`, which shuts down: changes no longer wait for it."""
        with self._database.log(following=True) as connection:
            connection.execute(delete(servers).where(servers.c.id == id))

    def forget(self, name: str, *, why: str = "", by: str = "") -> None:
        """Delete the heartbeat of the silent server `name` (host:pid), so that changes no longer report it. Audited.

        A server that is alive after all returns with its next heartbeat.

        Raises:
            NotFound: no server of this name is known.
            EditError: the server is running.
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
                    f"expected a silent server, but {name} is running: stop it, and it leaves the list by itself"
                )
            gone = servers.c.id.in_([entry.id for entry in silent])
            since = func.abs(self._database.clock - servers.c.seen) > LIVE_S  # it may have just returned
            change.connection.execute(delete(servers).where(gone, since))
            change.record(silent, None)

    def live(self) -> list[ServerEntry]:
        """Return the servers with a heartbeat within `LIVE_S`, by name."""
        return [entry for entry in self._read()[1] if entry.live]

    def known(self) -> list[ServerEntry]:
        """Return the servers that are live or silent, by name."""
        return [entry for entry in self._read()[1] if entry.live or entry.silent]

    def seen(self) -> Seen:
        """Return what is seen of the registry and its servers now, for several waits."""
        seen = Seen()
        seen.add(*self._read())
        return seen

    def wait(
        self, generation: int, timeout_s: float, drained: bool = False, *, seen: Seen | None = None
    ) -> Acknowledged:
        """Wait until every live server follows `generation`, or has drained up to it, at most `timeout_s`.

        A server that falls silent during the wait counts as missing, since it may still serve; a server that leaves
        does not. Servers that were silent before are reported, but not waited for.

        A state that the registry has lost, by a failover or a restore, does not count, whatever its generation: a
        server follows if its revision was the registry's own during the wait, or during `seen`.

        Args:
            generation: The generation to wait for.
            timeout_s: Maximum duration in seconds.
            drained: Wait for `ServerEntry.drained` instead of `ServerEntry.generation`.
            seen: What earlier waits have seen; this wait adds to it. Without it, the changes that are made between two
                waits would make the second wait for servers that have reported enough before.
        """
        started, awaited = time.monotonic(), set[str]()
        seen = seen or Seen()
        enough = seen.drained if drained else seen.follows
        while True:
            newest, known = self._read()
            seen.add(newest, known)
            awaited |= {entry.id for entry in known if entry.live}
            here = [entry for entry in known if entry.id in awaited]
            behind = [entry for entry in known if not enough(entry, generation)]
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

    def _read(self) -> tuple[Revision, list[ServerEntry]]:
        """The registry's revision, and the servers."""
        with self._database.read() as connection:
            return revision.current(connection), self._known(connection)

    def _known(self, connection: Connection) -> list[ServerEntry]:
        s = servers.c
        ago = (self._database.clock - s.seen).label("seen_ago_s")
        wanted = select(s.id, s.host, s.pid, s.generation, s.drained, ago, s.token)
        found = [ServerEntry(**row._mapping) for row in connection.execute(wanted)]
        return sorted(found, key=lambda entry: (entry.host, entry.pid, entry.id))
