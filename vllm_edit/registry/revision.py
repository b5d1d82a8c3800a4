"""A revision: it identifies one state of a registry."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from vllm_edit.registry import tables


@dataclass(frozen=True)
class Revision:
    """A state of a registry.

    The generation alone does not identify it: after a failover or a restore the registry may lack its last changes, and
    new changes have the numbers of the lost changes.

    Attributes:
        generation: Number of changes so far.
        token: Random text that every change writes anew. None: unknown, so that only the generation counts.
    """

    generation: int
    token: str | None = None

    def same(self, other: Revision) -> bool:
        """True if both are the same state, as far as their tokens are known."""
        return self.generation == other.generation and (self.token == other.token or None in (self.token, other.token))

    def behind(self, newest: Revision) -> int:
        """Number of changes up to `newest`; at least 1 for any other state, also if the registry has lost it."""
        return 0 if self.same(newest) else max(1, newest.generation - self.generation)


def current(connection: Connection) -> Revision:
    """Return the registry's revision, in the caller's transaction."""
    generation, token = connection.execute(select(tables.generation.c.value, tables.generation.c.token)).one()
    return Revision(generation, token)
