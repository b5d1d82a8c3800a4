"""Retired patches: nobody is served them any more, and they are removed as soon as no server needs their files.

A retired patch cannot be listed, resolved, published or be an arm of a rollout. Servers see it gone from their snapshot
and drop its adapter. Saving it again makes it what it was.

Deleting thousands of objects takes minutes, and changes of the registry must not wait for that. So nothing is locked
meanwhile but what would be at odds with it: removing another one, and saving a retired patch again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import select

from vllm_edit.registry import patch_rows, publication_rows, rollout_rows, tables
from vllm_edit.registry.changes import Changes
from vllm_edit.registry.database import Database
from vllm_edit.registry.entries import PatchEntry


class Retired:
    """A registry's retired patches."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes

    def add(self, entry: PatchEntry, by: str = "") -> bool:
        """Retire a patch. False, and nothing changes, if it is not as `entry` says any more (it was saved again), or a
        tenant could be served it, now or after a rollback, or it is an arm of a rollout."""
        with self._changes.make("patch.retire", by=by) as change:
            connection, name = change.connection, entry.name
            if (
                patch_rows.known(connection, name) != entry
                or publication_rows.who_may_be_served(connection, name) is not None
                or name in rollout_rows.names_in_use(connection)
            ):
                return False
            generation = connection.execute(select(tables.generation.c.value)).scalar_one()
            patch_rows.retire(connection, name, generation)
            change.tells(entry, {"name": name, "retired": generation})
            return True

    def since(self) -> dict[str, int]:
        """Retired patches, each with the generation that retired it, in that order."""
        with self._database.read() as connection:
            return patch_rows.retired(connection)

    def remove(self, name: str, since: int, remove_files: Callable[[], object], by: str = "") -> bool:
        """Forget a patch that is retired since then. False, and nothing is removed, if it was saved again.

        remove_files: runs outside of any change. If it fails or is killed, the patch stays retired, with the files that
        are left, and the next removal goes on there.
        """
        with self.settled():
            if self.since().get(name) != since:
                return False
            remove_files()
            with self._changes.make("patch.remove", by=by) as change:
                patch_rows.remove(change.connection, name)
                change.tells({"name": name, "retired": since}, None)
            return True

    def settled(self) -> AbstractContextManager[object]:
        """While it lasts no files of retired patches are removed or put back by anybody else."""
        return self._database.alone()
