"""A node's last known registry state, in a file: a server that starts while the registry is down serves from it.

{"digest": …, "state": a Snapshot as JSON}     in one file of mode 0600, because it holds the hashes of API keys

Writes are atomic: a kill at any moment leaves the old state or the new state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from vllm_edit.digest import canonical, digest_bytes, intact_content, with_digest
from vllm_edit.errors import Corrupt, EditError, Unavailable
from vllm_edit.files import LocalFiles, file_lock, replacing
from vllm_edit.json_value import JSONObject
from vllm_edit.registry.database import without_secrets
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.store.locations import state_folder

if TYPE_CHECKING:
    from vllm_edit.store.store import Store

_JSON = TypeAdapter(Snapshot)


@dataclass(frozen=True)
class _State:
    """The content of a file: a snapshot as JSON, and its generation."""

    generation: int
    content: JSONObject


class LastState:
    """One registry's last known state in the file `path`. Servers of one node may share it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, store: Store) -> LastState:
        """Return the default file on this node, separate for each pair of store and registry."""
        files = store.files
        place = str(files.root.resolve()) if isinstance(files, LocalFiles) else store.url
        registry = without_secrets(store.registry.url)  # independent of the password
        return cls(state_folder() / f"{digest_bytes(place.encode(), registry.encode())}.json")

    def __repr__(self) -> str:
        return f"LastState({str(self.path)!r})"

    def keep(self, snapshot: Snapshot, is_newest: Callable[[], bool] = lambda: False) -> bool:
        """Write the state, fsynced; return False, without a write, if the file holds a newer state.

        Args:
            snapshot: The state.
            is_newest: Returns whether it is the registry's present state. Called if the file's generation is larger:
                the registry may have lost that state, by a failover or a restore.
        """
        state = _JSON.dump_python(snapshot, mode="json", by_alias=True)
        data = canonical(with_digest("state", state))
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(self.path.with_name(f"{self.path.name}.lock")):
            try:
                known = self._state()
            except Corrupt:  # the new state replaces it
                known = None
            if known is not None and known.generation > snapshot.generation and not is_newest():
                return False
            self._write(data)
        return True

    def read(self) -> Snapshot | None:
        """Return the stored state; None if there is none.

        Raises:
            Corrupt: the file is damaged, or another version of vllm-edit wrote it.
            Unavailable: the file cannot be read.
        """
        known = self._state()
        if known is None:
            return None
        try:
            return _JSON.validate_python(known.content)
        except (ValidationError, EditError) as error:
            raise Corrupt(f"{self.path} was written by another version of vllm-edit; {self._remedy}") from error

    def _state(self) -> _State | None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be read ({error.strerror}); {self._remedy}") from error
        try:
            content: JSONObject = intact_content(data, "state")
            generation = content["generation"]
        except (ValueError, KeyError, TypeError):
            generation = None
        if not isinstance(generation, int):
            raise Corrupt(f"{self.path} does not match its digest; {self._remedy}")
        return _State(generation, content)

    @property
    def _remedy(self) -> str:
        return "remove it, and start when the registry can be reached: the server then writes a new file"

    def _write(self, data: bytes) -> None:
        with replacing(self.path, only_writer=True) as new:
            new.touch(mode=0o600)
            new.write_bytes(data)
