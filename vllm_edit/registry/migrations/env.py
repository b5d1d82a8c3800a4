"""Alembic's entry: runs the migrations on the connection that `migrations.upgrade` passes in."""

from __future__ import annotations

from alembic import context

from vllm_edit.registry.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
