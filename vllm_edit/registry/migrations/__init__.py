"""Alembic migrations of the registry. They run at the first use of a registry; a released migration is never edited."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from vllm_edit.errors import EditError


def is_current(connection: Connection) -> bool:
    """Return whether the database has the newest schema.

    Raises:
        EditError: the schema is unknown to this version.
    """
    script = ScriptDirectory.from_config(_config(connection))
    current = MigrationContext.configure(connection).get_current_revision()
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise EditError(
            f"the registry has schema {current}, this version of vllm-edit knows {', '.join(sorted(known))}; "
            "use the version that wrote it, or a newer one"
        )
    return current == script.get_current_head()


def is_empty(connection: Connection) -> bool:
    """Return whether the database has no schema yet."""
    return MigrationContext.configure(connection).get_current_revision() is None


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Upgrade the database to the newest or the given schema, within the connection's own transaction."""
    command.upgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    config = Config()
    # Alembic reads its options through configparser, which requires a doubled per cent sign.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
