"""Adding to a log many rows at once, some of which may be in it already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def add_unknown(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Enter the rows whose primary key is not in `table` yet; those that are stay as they are.

    A batch whose commit was not heard of is written once more: whoever sends it cannot know what arrived.
    """
    if rows:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key)), rows)
