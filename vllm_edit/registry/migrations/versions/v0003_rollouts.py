"""Rollouts, the requests that they decided, and their outcomes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("share", sa.Integer, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("changed_at", sa.DateTime, nullable=False),
    )
    op.create_index("rollouts_by_tenant", "rollouts", ["tenant", "closed"])
    op.create_table(
        "exposures",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("rollout", sa.String(63), sa.ForeignKey("rollouts.name"), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("side", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("unit", sa.String(32)),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("seconds", sa.Float),
    )
    op.create_index("exposures_by_rollout", "exposures", ["rollout", "side"])
    op.create_table(
        "outcomes",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("exposure", sa.String(64), sa.ForeignKey("exposures.id"), nullable=False),
        sa.Column("metric", sa.String(63), nullable=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.UniqueConstraint("exposure", "metric", name="outcomes_once"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    for table in ("outcomes", "exposures", "rollouts"):
        op.drop_table(table)
