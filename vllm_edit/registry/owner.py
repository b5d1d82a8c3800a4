"""Whose a registry is: it belongs to one store, and keeps the digest of that store's site.

Two stores with one registry would share tenants and publications, and servers of one would look for patches of the
other. A registry without a digest is nobody's yet: the first change that a store makes enters its own. One from before
digests were kept has patches then, and becomes that store's which has them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from sqlalchemy import Connection, select, update

from vllm_edit.errors import Corrupt, Incompatible
from vllm_edit.registry import tables


class Owner:
    """A store, as its registry knows it.

    place: its URL. site: reads its site's digest. has: are there files of a patch of that name in it?
    """

    def __init__(self, place: str, site: Callable[[], str], has: Callable[[str], bool]) -> None:
        self._place, self._read_site, self._has = place, site, has

    def check(self, connection: Connection) -> None:
        """Raises `Incompatible` if the registry is another store's."""
        known = connection.execute(select(tables.generation.c.site)).scalar_one()
        if self._site is None:
            return
        if known is None and self._is_foreign(connection):
            known = "of its patches"
        if known not in (None, self._site):
            raise Incompatible(
                f"the registry {connection.engine.url.render_as_string(hide_password=True)} belongs to another store: "
                f"to one with site {known}, and {self._place} has site {self._site}; one registry is for one store: "
                "name this store's own in VLLM_EDIT_REGISTRY, or unset it"
            )

    def enter(self, connection: Connection) -> None:
        """`check`, and make a registry that is nobody's this store's, in the caller's transaction."""
        self.check(connection)
        nobodys = tables.generation.c.site.is_(None)
        if self._site is not None:
            connection.execute(update(tables.generation).where(nobodys).values(site=self._site))
        self.check(connection)  # somebody may have been faster

    @cached_property
    def _site(self) -> str | None:
        try:
            return self._read_site()
        except Corrupt:  # told wherever the site itself is needed
            return None

    def _is_foreign(self, connection: Connection) -> bool:
        """True if the registry has patches, and this store none of them."""
        names = connection.execute(select(tables.patches.c.name)).scalars().all()
        return bool(names) and not any(map(self._has, names))
