"""Leases: work that exactly one server at a time does, until it dies or loses the registry.

A lease expires by the database's own clock, so the clocks of the servers' machines do not matter. Functions with a
connection run in their caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, or_, select, update

from vllm_edit.errors import EditError
from vllm_edit.registry.database import Database, add_unknown
from vllm_edit.registry.tables import leases

GUARDRAILS = "guardrails"
"""Name of the lease of the server that tests rollouts' limits and follows their schedules."""
LEASE_S = 10.0
"""A lease that is not renewed for so long is free. Its owner renews it several times meanwhile."""


class LeaseLost(EditError):
    """Another server has the lease, or it has expired."""


@dataclass(frozen=True)
class Leases:
    """A registry's leases. Taking one is no change: the generation stays, and nothing is audited."""

    database: Database

    def take(self, name: str, owner: str, server: str, seconds: float = LEASE_S) -> bool:
        """Take or renew the lease; return False if another owner has it.

        Args:
            name: What the lease is for.
            owner: The owner's id, which no other process has.
            server: The owner's name for people, `host:pid`.
            seconds: Duration until it expires.
        """
        row = {"owner": owner, "server": server, "expires": self.database.clock + seconds}
        ago, lease = self.database.clock - leases.c.expires, leases.c
        free = or_(lease.owner == owner, ago >= 0, ago < -seconds - 1)  # the last: the clock was set back
        with self.database.log() as connection:
            if connection.execute(update(leases).where(lease.name == name, free).values(**row)).rowcount:
                return True
            add_unknown(connection, leases, [{"name": name, "owner": owner, "server": server, "expires": 0.0}])
            mine = (lease.name == name) & (lease.owner == owner)
            return bool(connection.execute(update(leases).where(mine).values(**row)).rowcount)

    def release(self, name: str, owner: str) -> None:
        """Give the lease back, if `owner` has it."""
        with self.database.log() as connection:
            connection.execute(delete(leases).where(leases.c.name == name, leases.c.owner == owner))

    def require(self, connection: Connection, name: str, owner: str) -> None:
        """Raise `LeaseLost` unless `owner` has the lease now."""
        wanted = select(leases.c.owner).where(leases.c.name == name, leases.c.expires > self.database.clock)
        if connection.execute(wanted).scalar() != owner:
            raise LeaseLost(f"the lease {name} has expired or is another server's; take it again")

    def server(self, connection: Connection, name: str) -> str | None:
        """Return the server that has the lease now; None if nobody has it."""
        wanted = select(leases.c.server).where(leases.c.name == name, leases.c.expires > self.database.clock)
        found: str | None = connection.execute(wanted).scalar()
        return found
