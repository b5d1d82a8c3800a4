"""Idempotent batch inserts into a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def add_unknown(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose primary key is not in `table` yet; existing rows stay unchanged.

    A batch is retried if its commit was not acknowledged, so inserts must be idempotent.
    """
    if rows:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key)), rows)
