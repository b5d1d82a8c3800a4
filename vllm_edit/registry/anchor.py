"""The anchor of the audit: the head of its chain, in a file of the store, outside the database.

It is written after each commit, never before: an uncommitted head would look like a removed row.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from vllm_edit.digest import canonical
from vllm_edit.errors import Corrupt
from vllm_edit.files import Files
from vllm_edit.registry.audit import Head

ANCHOR = "audit.json"


class Anchor:
    """The head in a store's files. It only moves forward, in whichever order processes write it."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def read(self) -> Head | None:
        """Return the stored head; None if there is no file.

        Raises:
            Corrupt: the file holds no head.
        """
        try:
            data = self._files.read(ANCHOR)
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(data)
            head = Head(number=fields["number"], digest=fields["digest"])
            intact = isinstance(head.number, int) and re.fullmatch("[0-9a-f]{64}", head.digest) is not None
        except (ValueError, KeyError, TypeError, RecursionError):
            intact = False
        if not intact:
            raise Corrupt(f"{ANCHOR} holds no head of the audit; restore it from a copy")
        return head

    def advance(self, head: Head) -> None:
        """Write `head`, fsynced, unless the file already holds a later head."""
        with self._files.locked(ANCHOR):
            known = self.read()
            if known is None or known.number < head.number:
                self._files.write(ANCHOR, canonical(asdict(head)))
