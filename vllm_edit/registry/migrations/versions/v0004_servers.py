"""Heartbeats of servers, and patches that are being removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "servers",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("drained", sa.Integer, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
    )
    op.add_column("patches", sa.Column("retired", sa.Integer))


def downgrade() -> None:
    op.drop_column("patches", "retired")
    op.drop_table("servers")
