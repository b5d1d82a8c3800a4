"""Retired patches: no tenant is served them, and gc removes them as soon as no server needs their files.

A retired patch cannot be listed, resolved, published or used in a rollout. It is absent from the snapshot of servers,
which drop its adapter. Saving the patch again ends its retirement.

Deleting thousands of objects takes minutes, and changes of the registry must not wait for that. Therefore the deletion
blocks only the operations that conflict with it: removing another patch, and saving a retired patch again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import select

from vllm_edit.registry import patches, publications, rollouts, tables
from vllm_edit.registry.database import Database
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.registry.transactions import Changes


class Retired:
    """A registry's retired patches."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes

    def add(self, entry: PatchEntry, by: str = "") -> bool:
        """Retire a patch.

        Returns:
            False, without a change, if the patch differs from `entry` (it was saved again), if a tenant is served it or
            could be after a rollback, or if a rollout uses it.
        """
        with self._changes.make("patch.retire", by=by) as change:
            connection, name = change.connection, entry.name
            now = self._database.now(connection)  # this machine's clock may be wrong, and gc deletes for good
            if (
                patches.known(connection, name) != entry
                or publications.who_may_be_served(connection, name, now) is not None
                or name in rollouts.names_in_use(connection, now)
            ):
                return False
            generation = connection.execute(select(tables.generation.c.value)).scalar_one()
            patches.retire(connection, name, generation)
            change.record(entry, {"name": name, "retired": generation})
            return True

    def since(self) -> dict[str, int]:
        """Return retired patches, each with the generation that retired it, the oldest first."""
        with self._database.read() as connection:
            return patches.retired(connection)

    def remove(self, name: str, since: int, remove_files: Callable[[], object], by: str = "") -> bool:
        """Delete a retired patch's files, then its entry.

        Args:
            name: The patch.
            since: The generation that retired it.
            remove_files: Deletes the files, outside any transaction. If it fails or is killed, the patch stays retired
                with the remaining files, and the next removal continues.
            by: Who removes it, for the audit.

        Returns:
            False, without a deletion, if the patch was saved again.
        """
        with self.settled():
            if self.since().get(name) != since:
                return False
            remove_files()
            with self._changes.make("patch.remove", by=by) as change:
                patches.remove(change.connection, name)
                change.record({"name": name, "retired": since}, None)
            return True

    def settled(self) -> AbstractContextManager[object]:
        """Hold the lock under which files of retired patches are deleted or restored."""
        return self._database.alone()
