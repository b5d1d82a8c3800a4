"""The table of answered requests, in the registry's metadata."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, String, Table, Text

from vllm_edit.registry.tables import UtcDateTime, metadata

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
