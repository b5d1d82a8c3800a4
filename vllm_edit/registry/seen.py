"""What waits have seen of a registry and its servers, so that a later wait need not see it again."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.registry.revision import Revision
from vllm_edit.registry.server_entry import ServerEntry


class Seen:
    """The revisions that the registry had, and each server's last heartbeat from one of them."""

    def __init__(self) -> None:
        self._newest = Revision(-1)
        self._tokens: dict[int, str | None] = {}  # by generation
        self._heartbeats: dict[str, ServerEntry] = {}  # by the server's id

    def add(self, newest: Revision, known: Sequence[ServerEntry]) -> None:
        """Add the registry's revision and the servers, as one transaction read them.

        If the registry has lost changes, by a failover or a restore, all that was seen before may be lost: forget it.
        """
        if newest.generation <= self._newest.generation and not newest.same(self._newest):
            self._tokens.clear()
            self._heartbeats.clear()
        self._newest = newest
        self._tokens[newest.generation] = newest.token
        own = [entry for entry in known if entry.token in (None, self._tokens.get(entry.generation))]
        self._heartbeats.update({entry.id: entry for entry in own})

    def follows(self, entry: ServerEntry, generation: int) -> bool:
        """True if the server reports that it follows `generation`, and did so from a revision of this registry."""
        own = self._heartbeats.get(entry.id)
        return own is not None and min(entry.generation, own.generation) >= generation

    def drained(self, entry: ServerEntry, generation: int) -> bool:
        """The same for `ServerEntry.drained`."""
        own = self._heartbeats.get(entry.id)
        return own is not None and min(entry.drained, own.drained) >= generation
