"""Shadows of rollouts: the share of answers that the other arm repeats, its comparisons, and what was not compared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("shadow", sa.Text))
    op.create_table(
        "shadows",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("rollout", sa.String(63), sa.ForeignKey("rollouts.name"), nullable=False),
        sa.Column("answer", sa.String(64), nullable=False),
        sa.Column("side", sa.String(16), nullable=False),
        sa.Column("same", sa.Boolean, nullable=False),
        sa.Column("greedy", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("shadow_seconds", sa.Float),
        sa.Column("tokens", sa.Integer),
        sa.Column("shadow_tokens", sa.Integer),
        sa.Column("text", sa.Text),
        sa.Column("shadow_text", sa.Text),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("server", sa.String(128), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("shadows_by_rollout", "shadows", ["rollout", "number"])
    op.create_index("shadows_by_time", "shadows", ["at"])
    op.create_table(
        "shadow_losses",
        sa.Column("rollout", sa.String(63), sa.ForeignKey("rollouts.name"), primary_key=True),
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("dropped", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("shadow_losses")
    op.drop_table("shadows")
    op.drop_column("rollouts", "shadow")
