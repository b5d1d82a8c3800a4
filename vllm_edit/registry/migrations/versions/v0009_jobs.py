"""The queue of patches to compile."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("patch", sa.String(63), nullable=False),
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.name")),
        sa.Column("author", sa.String(16)),
        sa.Column("by", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("request", sa.Text),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("started_at", sa.DateTime),
        sa.Column("ended_at", sa.DateTime),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(160)),
        sa.Column("lease", sa.Float),
        sa.Column("step", sa.String(64), nullable=False),
        sa.Column("step_done", sa.Integer, nullable=False),
        sa.Column("step_total", sa.Integer, nullable=False),
        sa.Column("name", sa.String(96)),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "created_at"])
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "created_at"])
    op.create_index("jobs_by_patch", "jobs", ["patch"])


def downgrade() -> None:
    op.drop_table("jobs")
