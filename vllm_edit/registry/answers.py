"""The registry's log of answers: which patch and server answered each request. Servers add to it in batches."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from vllm_edit.registry import answer_rows, tenant_rows
from vllm_edit.registry.answer_rows import AnswerEntry
from vllm_edit.registry.database import Database


class Answers:
    """An append-only log: additions leave the generation unchanged and are not audited."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, found: Iterable[AnswerEntry]) -> None:
        """Insert a batch of answers. Answers with a known id stay unchanged, so a batch may be sent twice."""
        with self._database.log() as connection:
            answer_rows.add(connection, found)

    def find(self, id: str) -> AnswerEntry:
        with self._database.read() as connection:
            return answer_rows.find(connection, id)

    def newest(self, tenant: str | None = None, limit: int = 20) -> list[AnswerEntry]:
        """Return the last answers of all tenants or of one, the newest first."""
        with self._database.read() as connection:
            if tenant is not None:
                tenant_rows.require(connection, tenant)
            return answer_rows.newest(connection, tenant, limit)

    def sweep(self, older_than: datetime, limit: int = 5_000) -> int:
        """Delete at most `limit` answers from before `older_than`, and return their number.

        A result below `limit` means that no older answers are left. Each call holds the database's lock only briefly,
        so that publications do not wait while many answers are deleted.
        """
        with self._database.log() as connection:
            return answer_rows.sweep(connection, older_than, limit)
