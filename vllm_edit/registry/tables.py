"""The registry's tables (SQLAlchemy Core). `migrations/` makes them; a test holds the two against each other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Boolean, Column, DateTime, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, aware on both sides; SQLite itself forgets the zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

# One row, id 1. Every change adds one to `value` in its own transaction; servers watch it. `site`: the digest of the
# site of the store that the registry belongs to (`owner`).
generation = Table(
    "generation",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("value", Integer, nullable=False),
    Column("site", String(32)),
)

# adapter_id is what vLLM knows an adapter by. It is never given twice, also not after its patch is removed:
# a running engine may still hold the old one. `retired`: the generation since which gc is removing the patch.
patches = Table(
    "patches",
    metadata,
    Column("adapter_id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(96), nullable=False, unique=True),
    Column("patch", String(63), nullable=False, index=True),
    Column("digest", String(32), nullable=False),
    Column("saved_at", UtcDateTime, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("valid_until", UtcDateTime),
    Column("retired", Integer),
    sqlite_autoincrement=True,
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
)

# A tenant's active patch is its newest publication that is neither rolled back nor past `valid_until`. `name` is no
# foreign key: history outlives artefacts that gc removed.
publications = Table(
    "publications",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("tenant", String(63), ForeignKey("tenants.name"), nullable=False),
    Column("name", String(96), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String(128), nullable=False),
    Column("why", Text, nullable=False),
    Column("override", Boolean, nullable=False),
    Column("rolled_back_at", UtcDateTime),
    Column("rolled_back_by", String(128)),
    Column("rolled_back_why", Text),
    Column("valid_until", UtcDateTime),
    Index("publications_by_tenant", "tenant", "id"),
    sqlite_autoincrement=True,
)

# `id` is the part of a key that may be shown, `hash` is of the whole key (`keys`). Without a tenant it administers.
# Rows are never deleted: a registry that ever had a key stays keyed.
keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("tenant", String(63), ForeignKey("tenants.name")),
    Column("rights", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("label", String(128), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("revoked_by", String(128)),
    Column("revoked_why", Text),
)

# One row per change, chained by digests (`audit`). Triggers refuse to change or remove rows. All text: what was hashed
# must come back letter by letter from any database.
audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("who", String(128), nullable=False),
    Column("what", String(64), nullable=False),
    Column("tenant", String(63)),
    Column("why", Text, nullable=False),
    Column("old", Text, nullable=False),
    Column("new", Text, nullable=False),
    Column("previous", String(64), nullable=False, unique=True),
    Column("digest", String(64), nullable=False, unique=True),
    Index("audit_by_tenant", "tenant", "number"),
)

# Heartbeats of running servers. `seen` is in seconds of the database's own clock (`Database.clock`); `generation` is
# what the server decides from, `drained` that up to which it has dropped the adapters of removed patches.
servers = Table(
    "servers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("drained", Integer, nullable=False),
    Column("seen", Float, nullable=False),
)
