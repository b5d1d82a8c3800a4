"""A record: the intermediate results of a long measurement in a file, so that it can be interrupted and resumed.

JSON lines. The first line identifies the measurement; each further line is one complete entry, so that a killed process
loses only the entry in progress.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from vllm_edit.errors import EditError
from vllm_edit.files import file_lock
from vllm_edit.json_value import JSONObject, JSONValue

_OF, _FORM = "measures", 1
"""The first line's key for the identity, and the version of the entries' format."""


class Record:
    """A record in a file; `entries` holds its entries in the order of writing."""

    def __init__(self, path: Path, entries: list[JSONObject], length: int = 0) -> None:
        """length: bytes of the file that this record has read or written."""
        self.path, self.entries, self._length = path, entries, length

    @classmethod
    def open(cls, path: str | Path, identity: Mapping[str, JSONValue]) -> Record:
        """Open the record at `path`, or create it. An incomplete last line is dropped.

        Args:
            path: the file.
            identity: JSON-able; everything that determines the measurement.

        Raises:
            EditError: the file is the record of another measurement, or no record.
        """
        path = Path(path)
        wanted = json.loads(json.dumps({**identity, "form": _FORM}))
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        whole, end, torn = content.rpartition(b"\n")
        if not end and _line({_OF: wanted}).startswith(content):  # new, empty, or killed within the first line
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            record = cls(path, [])
            record._write({_OF: wanted})
            return record
        try:
            if not end:
                raise ValueError("its first line has no end")
            first, *entries = [json.loads(line) for line in whole.splitlines()]
            found = dict(first[_OF])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EditError(f"{path}: expected the record of an evaluation ({error!r}); name another file") from None
        if found != wanted:
            differ = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise EditError(
                f"{path} is the record of another evaluation, which differs in {', '.join(differ)}: name another file, "
                "or remove this one"
            )
        if torn:
            with path.open("r+b") as file:
                file.truncate(len(whole) + 1)
        return cls(path, entries, len(whole) + 1)

    def add(self, entry: Mapping[str, JSONValue]) -> None:
        """Append an entry; it is on disk when this returns.

        Raises:
            EditError: another process wrote to the file since this record was opened.
        """
        self._write(entry)
        self.entries.append(dict(entry))

    def _write(self, entry: Mapping[str, JSONValue]) -> None:
        lock = file_lock(self.path.with_name(f"{self.path.name}.lock"))
        with lock, self.path.open("ab") as file:
            if file.tell() != self._length:
                raise EditError(
                    f"another process writes to the record {self.path}: wait until it has finished, then run the same "
                    "command again; everything in the file is kept"
                )
            self._length += file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())


def _line(entry: Mapping[str, JSONValue]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
