"""A tenant's holdout, and the salt by which its users are divided among rollouts; both null until they are used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("holdout", sa.Integer))
    op.add_column("tenants", sa.Column("salt", sa.String(64)))


def downgrade() -> None:
    op.drop_column("tenants", "salt")
    op.drop_column("tenants", "holdout")
