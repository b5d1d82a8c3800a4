"""Tables of rollouts, exposures and outcomes, in the registry's metadata."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from vllm_edit.registry.tables import UtcDateTime, metadata

# `settings` is JSON: the settings fixed at creation (arms, salt, split, overrides, sticky keys, metrics, alpha).
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
