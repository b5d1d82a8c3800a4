"""The registry's log of answers: what answered which request. Servers add to it in batches."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from vllm_edit.registry import answer_rows, tenant_rows
from vllm_edit.registry.answer_rows import AnswerEntry
from vllm_edit.registry.database import Database


class Answers:
    """A log, no state: adding to it changes nothing that servers watch, and is not audited."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, found: Iterable[AnswerEntry]) -> None:
        """Enter answers, many at once. One whose id is known stays as it is, so that a batch may be sent twice."""
        with self._database.log() as connection:
            answer_rows.add(connection, found)

    def find(self, id: str) -> AnswerEntry:
        with self._database.read() as connection:
            return answer_rows.find(connection, id)

    def newest(self, tenant: str | None = None, limit: int = 20) -> list[AnswerEntry]:
        """The last answers of everyone or of a tenant, the newest first."""
        with self._database.read() as connection:
            if tenant is not None:
                tenant_rows.require(connection, tenant)
            return answer_rows.newest(connection, tenant, limit)

    def sweep(self, older_than: datetime, limit: int = 5_000) -> int:
        """Delete at most `limit` answers from before then; fewer than that were the last. Each call holds the
        database's lock for a moment only, so that a year of answers can go without a publication having to wait."""
        with self._database.log() as connection:
            return answer_rows.sweep(connection, older_than, limit)
