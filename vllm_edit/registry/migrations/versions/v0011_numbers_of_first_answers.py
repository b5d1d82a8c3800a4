"""64-bit numbers of first answers: on PostgreSQL, every answer of a user whose first is known uses one up too.

SQLite's integers have 64 bits, and a known row uses up no number.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_SEQUENCE = "pg_get_serial_sequence('first_answers', 'number')"


def upgrade() -> None:
    _resize(sa.BigInteger(), "bigint")


def downgrade() -> None:
    _resize(sa.Integer(), "integer")


def _resize(number: sa.types.TypeEngine[int], sequence: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.alter_column("first_answers", "number", type_=number)
        named = op.get_bind().execute(sa.text(f"select {_SEQUENCE}")).scalar_one()
        op.execute(f"alter sequence {named} as {sequence}")
