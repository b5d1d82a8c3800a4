"""The owner of a registry: a registry belongs to one store, and holds the digest of that store's site.

Two stores with one registry would share tenants and publications, and servers of one store would look for patches of
the other. A registry without a digest has no owner yet: the first change by a store enters its digest. A registry that
has patches but no digest (older versions wrote none) can only be claimed by the store that has those patches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from sqlalchemy import Connection, select, update

from vllm_edit.errors import Corrupt, Incompatible
from vllm_edit.registry import tables
from vllm_edit.registry.database import without_secrets


class Owner:
    """The store that a registry belongs to.

    Args:
        place: The store's URL.
        site: Reads the digest of the store's site.
        has: Returns whether the store has files of a patch of this name.
    """

    def __init__(self, place: str, site: Callable[[], str], has: Callable[[str], bool]) -> None:
        self._place, self._read_site, self._has = place, site, has

    def check(self, connection: Connection) -> None:
        """Raise `Incompatible` if the registry belongs to another store."""
        known = connection.execute(select(tables.generation.c.site)).scalar_one()
        if self._site is None:
            return
        if known is None and self._is_foreign(connection):
            known = "of its patches"
        if known not in (None, self._site):
            raise Incompatible(
                f"the registry {without_secrets(connection.engine.url)} belongs to another store, "
                f"with site {known}; {self._place} has site {self._site}. Each store needs its own registry: "
                "set VLLM_EDIT_REGISTRY to this store's, or unset it"
            )

    def enter(self, connection: Connection) -> None:
        """Run `check`, then claim a registry without an owner, in the caller's transaction."""
        self.check(connection)
        unowned = tables.generation.c.site.is_(None)
        if self._site is not None:
            connection.execute(update(tables.generation).where(unowned).values(site=self._site))
        self.check(connection)  # another store may have claimed it first

    @cached_property
    def _site(self) -> str | None:
        try:
            return self._read_site()
        except Corrupt:  # reported wherever the site itself is needed
            return None

    def _is_foreign(self, connection: Connection) -> bool:
        """True if the registry has patches, but this store has the files of none of them."""
        names = connection.execute(select(tables.patches.c.name)).scalars().all()
        return bool(names) and not any(map(self._has, names))
