"""The digest of the site of the store that the registry belongs to; none until that store makes a change."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("generation", sa.Column("site", sa.String(32)))


def downgrade() -> None:
    op.drop_column("generation", "site")
