"""The registry's tables (SQLAlchemy Core). `migrations/` creates them; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A time in UTC, always with its zone; SQLite itself stores none."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

# One row, id 1. Every change increments `value` and writes a new random `token` in its own transaction; servers watch
# both (`revision`). `site`: digest of the site of the store that the registry belongs to (`owner`).
generation = Table(
    "generation",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("value", Integer, nullable=False),
    Column("site", String(32)),
    Column("token", String(32)),
)

# adapter_id numbers the patches in the order of their first save. It is not reused after its patch is removed; only a
# registry that is restored from an older copy gives its last ids again.
# `retired`: the generation that retired the patch.
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

# `holdout`: buckets (of 10,000) of users who take part in no rollout. `salt`: divides the users among rollouts.
tenants = Table(
    "tenants",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("holdout", Integer),
    Column("salt", String(64)),
)

# A tenant's active patch is its newest publication that is neither rolled back nor past `valid_until`. `name` is not a
# foreign key: the history outlives artefacts that gc removed.
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

# `id` is the public part of an API key, `hash` the hash of the whole key (`api_keys`). A key without a tenant is an
# administrator's. Rows are never deleted: a registry that ever had a key keeps requiring keys.
api_keys = Table(
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

# One row per change, chained by digests (`audit`). Triggers reject updates and deletions. All columns are text, because
# every database must return the hashed content unchanged.
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

# Heartbeats of running servers. `seen` is in seconds of the database's own clock (`Database.clock`); the server decides
# requests from the state of `generation` and `token` (null: it has an earlier version), and has dropped the adapters of
# patches that were removed up to generation `drained`.
servers = Table(
    "servers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("drained", Integer, nullable=False),
    Column("seen", Float, nullable=False),
    Column("token", String(32)),
)

# `settings` is JSON: what is fixed at creation (arms, salt, split, overrides, sticky keys, metrics, alpha, limits).
# `schedule` is JSON: the ramp schedule that the rollout follows, and its present step; null without one.
# `shadow` is JSON: the share of answers that the other arm repeats; null without one.
rollouts = Table(
    "rollouts",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("tenant", String(63), ForeignKey("tenants.name"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("share", Integer, nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("settings", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("schedule", Text),
    Column("shadow", Text),
    Index("rollouts_by_tenant", "tenant", "closed"),
)

# A request that a rollout decided, by the id that the router issued. `unit`, the sticky key's pseudonym, is set if the
# answer is compared. Neither the sticky key nor the prompt is stored.
exposures = Table(
    "exposures",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("rollout", String(63), ForeignKey("rollouts.name"), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("side", String(16), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("unit", String(32)),
    Column("at", UtcDateTime, nullable=False),
    Column("failed", Boolean, nullable=False),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("seconds", Float),
    Index("exposures_by_rollout", "rollout", "side"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("exposure", String(64), ForeignKey("exposures.id"), nullable=False),
    Column("metric", String(63), nullable=False),
    Column("value", Float, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    UniqueConstraint("exposure", "metric", name="outcomes_once"),
    sqlite_autoincrement=True,
)

# The first compared answer of each unit. `number` is the order of arrival: rows are only added, so that a test that
# looks again sees the same beginning. On PostgreSQL a later answer of a known unit uses up a number too; and of two
# servers that write at one time, the one with the lower numbers may commit last, so its rows appear before known ones.
first_answers = Table(
    "first_answers",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("rollout", String(63), ForeignKey("rollouts.name"), nullable=False),
    Column("unit", String(32), nullable=False),
    Column("side", String(16), nullable=False),
    Column("failed", Boolean, nullable=False),
    Column("cut", Boolean, nullable=False),
    Column("seconds", Float),
    UniqueConstraint("rollout", "unit", name="first_answers_once"),
    sqlite_autoincrement=True,
)

# Locality probes that servers asked. `probe` is the beginning of the SHA-256 of the prompt; no text is stored.
canaries = Table(
    "canaries",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("rollout", String(63), ForeignKey("rollouts.name"), nullable=False),
    Column("probe", String(32), nullable=False),
    Column("changed", Boolean, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("server", String(128), nullable=False),
    Index("canaries_by_rollout", "rollout", "number"),
    sqlite_autoincrement=True,
)

# An answer of a client, by its id, compared with the answer of the other arm. `text` is the client's; both texts are
# null unless the rollout stores them, and are deleted with the log of answers.
shadows = Table(
    "shadows",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("rollout", String(63), ForeignKey("rollouts.name"), nullable=False),
    Column("answer", String(64), nullable=False),
    Column("side", String(16), nullable=False),
    Column("same", Boolean, nullable=False),
    Column("greedy", Boolean, nullable=False),
    Column("seconds", Float),
    Column("shadow_seconds", Float),
    Column("tokens", Integer),
    Column("shadow_tokens", Integer),
    Column("text", Text),
    Column("shadow_text", Text),
    Column("at", UtcDateTime, nullable=False),
    Column("server", String(128), nullable=False),
    Index("shadows_by_rollout", "rollout", "number"),
    Index("shadows_by_time", "at"),
    sqlite_autoincrement=True,
)

# Answers that were drawn for a shadow and not compared: totals of each server process, `owner`.
shadow_losses = Table(
    "shadow_losses",
    metadata,
    Column("rollout", String(63), ForeignKey("rollouts.name"), primary_key=True),
    Column("owner", String(64), primary_key=True),
    Column("dropped", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
)

# A limit that was exceeded, and acted once. `result` is JSON: the numbers that decided.
limit_decisions = Table(
    "limit_decisions",
    metadata,
    Column("rollout", String(63), ForeignKey("rollouts.name"), primary_key=True),
    Column("limit", String(160), primary_key=True),
    Column("result", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("server", String(128), nullable=False),
)

# Work that one server at a time does. `expires` is in seconds of the database's own clock.
leases = Table(
    "leases",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("server", String(128), nullable=False),
    Column("expires", Float, nullable=False),
)

# Names of tenants, patches, rollouts and API keys are not foreign keys: the log outlives the objects that it names.
# `subjects` and `groups` are JSON. `prompt` is null unless the operator logs prompts.
answers = Table(
    "answers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("route", String(64), nullable=False),
    Column("asked", String(160)),
    Column("tenant", String(63)),
    Column("key", String(16)),
    Column("patch", String(96)),
    Column("adapter", String(96)),
    Column("mode", String(16), nullable=False),
    Column("arm", String(16)),
    Column("rollout", String(63)),
    Column("reason", String(32), nullable=False),
    Column("subjects", Text),
    Column("groups", Text),
    Column("ike_tokens", Integer, nullable=False),
    Column("status", Integer),
    Column("ended", String(16)),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("seconds", Float),
    Column("first_token_seconds", Float),
    Column("router_seconds", Float, nullable=False),
    Column("generation", Integer),
    Column("server", String(128), nullable=False),
    Column("prompt", Text),
    Index("answers_by_time", "at"),
    Index("answers_by_tenant", "tenant", "at"),
)

# Patches to compile (`jobs`). `request` is JSON and is deleted when the job ends, `digest` is that of its content.
# `author` is the id of an API key. `worker` works on the job until `lease`, in seconds of the database's own clock.
# `name` is the compiled patch, written before it is saved. `settings` and `result` are JSON.
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("patch", String(63), nullable=False),
    Column("tenant", String(63), ForeignKey("tenants.name")),
    Column("author", String(16)),
    Column("by", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("method", String(32), nullable=False),
    Column("settings", Text, nullable=False),
    Column("digest", String(32), nullable=False),
    Column("request", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("attempts", Integer, nullable=False),
    Column("worker", String(160)),
    Column("lease", Float),
    Column("step", String(64), nullable=False),
    Column("step_done", Integer, nullable=False),
    Column("step_total", Integer, nullable=False),
    Column("name", String(96)),
    Column("result", Text),
    Column("error", Text, nullable=False),
    Index("jobs_by_state", "state", "created_at"),
    Index("jobs_by_tenant", "tenant", "created_at"),
    Index("jobs_by_patch", "patch"),
)
