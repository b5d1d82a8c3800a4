"""The log of answered requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("route", sa.String(64), nullable=False),
        sa.Column("asked", sa.String(160)),
        sa.Column("tenant", sa.String(63)),
        sa.Column("key", sa.String(16)),
        sa.Column("patch", sa.String(96)),
        sa.Column("adapter", sa.String(96)),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("arm", sa.String(16)),
        sa.Column("rollout", sa.String(63)),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("subjects", sa.Text),
        sa.Column("groups", sa.Text),
        sa.Column("ike_tokens", sa.Integer, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("ended", sa.String(16)),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("seconds", sa.Float),
        sa.Column("first_token_seconds", sa.Float),
        sa.Column("router_seconds", sa.Float, nullable=False),
        sa.Column("generation", sa.Integer),
        sa.Column("server", sa.String(128), nullable=False),
        sa.Column("prompt", sa.Text),
    )
    op.create_index("answers_by_time", "answers", ["at"])
    op.create_index("answers_by_tenant", "answers", ["tenant", "at"])


def downgrade() -> None:
    op.drop_table("answers")
