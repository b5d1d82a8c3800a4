"""A record: what a long measurement found so far, in a file, so that it can be interrupted and gone on with.

JSON lines. The first says what is measured; each further one is written at once, when it is complete, so that a process
that is killed loses what it was doing and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_edit.errors import EditError

_OF, _FORM = "measures", 1
"""Where the first line says what is measured, and the form of entries, which counts up when it changes."""


class Record:
    """The record in a file. `entries`: what it holds, in the order of writing."""

    def __init__(self, path: Path, entries: list[dict[str, Any]]) -> None:
        self.path, self.entries = path, entries

    @classmethod
    def open(cls, path: str | Path, identity: Mapping[str, Any]) -> Record:
        """The record at `path`, begun where there is none. A line that was not written to its end is dropped.

        identity: JSON-able; everything that decides what is measured.

        Raises:
            EditError: the file is the record of something else, or no record.
        """
        path = Path(path)
        wanted = json.loads(json.dumps({**identity, "form": _FORM}))
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        whole, _, torn = content.rpartition(b"\n")
        lines = whole.splitlines() if whole else []
        try:
            first, *entries = [json.loads(line) for line in lines] or [{_OF: wanted}]
            found = dict(first[_OF])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EditError(f"{path}: expected the record of an evaluation ({error!r}); name another file") from None
        if found != wanted:
            differ = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            raise EditError(
                f"{path} is the record of another evaluation, which differs in {', '.join(differ)}: name another file, "
                "or remove this one"
            )
        record = cls(path, entries)
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            record._write(first)
        elif torn:
            with path.open("r+b") as file:
                file.truncate(len(whole) + 1)
        return record

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry; it is on disk when this returns."""
        self._write(entry)
        self.entries.append(dict(entry))

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
