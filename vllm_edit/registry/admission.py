"""Admission of patches to publications and rollouts, before the change: nobody else's change waits for the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vllm_edit.registry import patches, tenants
from vllm_edit.registry.database import Database


class Admission:
    """What a patch needs besides its gate: its signature, where the store requires one.

    Args:
        database: The registry's database.
        admit: Raises if a patch may not be published. It reads the store, which may be far away.
    """

    def __init__(self, database: Database, admit: Callable[[str], object]) -> None:
        self._database, self._admit = database, admit

    def check(self, tenant: str, names: Iterable[str]) -> None:
        """Raise if one of the patches may not be served to the tenant. Call it outside of a transaction.

        Raises:
            NotFound: there is no such tenant or patch.
            Unsigned: the store requires a signature, and a patch has no valid one.
        """
        names = list(names)
        with self._database.read() as connection:
            tenants.require(connection, tenant)
            for name in names:
                patches.find(connection, name)
        for name in names:
            self._admit(name)
