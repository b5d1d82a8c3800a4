"""A random token beside the generation, and the token of the state that each server follows."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    for table in ("generation", "servers"):
        op.add_column(table, sa.Column("token", sa.String(32)))
    generation = sa.table("generation", sa.column("token", sa.String))
    op.execute(generation.update().values(token=secrets.token_hex(16)))


def downgrade() -> None:
    for table in ("servers", "generation"):
        op.drop_column(table, "token")
