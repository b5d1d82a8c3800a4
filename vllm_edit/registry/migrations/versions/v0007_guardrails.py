"""Limits and ramp schedules of rollouts: users' first answers, locality probes, decisions, and leases of servers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("schedule", sa.Text))
    op.create_table(
        "first_answers",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("rollout", sa.String(63), sa.ForeignKey("rollouts.name"), nullable=False),
        sa.Column("unit", sa.String(32), nullable=False),
        sa.Column("side", sa.String(16), nullable=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("cut", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.UniqueConstraint("rollout", "unit", name="first_answers_once"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "canaries",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("rollout", sa.String(63), sa.ForeignKey("rollouts.name"), nullable=False),
        sa.Column("probe", sa.String(32), nullable=False),
        sa.Column("changed", sa.Boolean, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("server", sa.String(128), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("canaries_by_rollout", "canaries", ["rollout", "number"])
    op.create_table(
        "limit_decisions",
        sa.Column("rollout", sa.String(63), sa.ForeignKey("rollouts.name"), primary_key=True),
        sa.Column("limit", sa.String(160), primary_key=True),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("server", sa.String(128), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("server", sa.String(128), nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )


def downgrade() -> None:
    for table in ("leases", "limit_decisions", "canaries", "first_answers"):
        op.drop_table(table)
    op.drop_column("rollouts", "schedule")
