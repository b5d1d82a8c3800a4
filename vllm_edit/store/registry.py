"""The registry: which patches exist and under which adapter id, and what each tenant is served.

One transaction per state change: what belongs together is written through one connection (`patch_rows`, `tenant_rows`,
`publication_rows`). Every change adds one to the generation within it. Callers get values, never rows.
"""

from __future__ import annotations

from typing import get_args

from sqlalchemy import URL

from vllm_edit.errors import EditError
from vllm_edit.store import patch_rows, publication_rows, tenant_rows
from vllm_edit.store.database import Database
from vllm_edit.store.entries import PatchEntry, Publication, Status, Tenant
from vllm_edit.store.names import short, shown


class Registry:
    """Registry in a SQL database: SQLite by default, any other by its SQLAlchemy URL."""

    def __init__(self, url: str | URL) -> None:
        """Open, and bring the schema up to date."""
        self._database = Database(url)

    def __repr__(self) -> str:
        return f"Registry({str(self._database)!r})"

    @property
    def url(self) -> URL:
        return self._database.url

    def close(self) -> None:
        self._database.close()

    # Patches

    def add_patch(self, name: str) -> PatchEntry:
        """Enter a patch, or mark a known one as saved again (it becomes its patch's newest; id and status stay)."""
        with self._database.change() as connection:
            return patch_rows.add(connection, name)

    def remove_patch(self, name: str) -> None:
        """Forget a patch. Refused while a tenant could be served it, now or after a rollback."""
        with self._database.change() as connection:
            tenant = publication_rows.who_may_be_served(connection, name)
            if tenant is not None:
                raise EditError(f"{short(name)} is in the history of tenant {tenant!r}, who may be rolled back to it")
            patch_rows.remove(connection, name)

    def patch(self, name: str) -> PatchEntry:
        with self._database.read() as connection:
            return patch_rows.find(connection, name)

    def patches(self) -> list[PatchEntry]:
        """All patches, the one saved last first."""
        with self._database.read() as connection:
            return patch_rows.newest_first(connection)

    def set_status(self, name: str, status: Status, reason: str = "") -> None:
        """Record what the gate said of a patch. What is published stays published."""
        if status not in get_args(Status):
            raise EditError(f"expected a status among {', '.join(get_args(Status))}, got {shown(status)}")
        with self._database.change() as connection:
            patch_rows.set_status(connection, name, status, reason)

    # Tenants and what they are served

    def create_tenant(self, name: str) -> Tenant:
        with self._database.change() as connection:
            return tenant_rows.create(connection, name)

    def tenants(self) -> list[Tenant]:
        """All tenants by name, each with its active patch."""
        with self._database.read() as connection:
            return tenant_rows.by_name(connection)

    def active(self, tenant: str) -> str | None:
        """The name that the tenant is served, None for the base model."""
        with self._database.read() as connection:
            tenant_rows.require(connection, tenant)
            return publication_rows.active(connection, tenant)

    def publish(self, tenant: str, name: str, why: str = "", override: bool = False, by: str = "") -> str:
        """Serve `name` to the tenant from now on, and return it. Publishing what is active already changes nothing.

        Raises:
            EditError: the patch was rejected by its gate and `override` is not set.
        """
        with self._database.change() as connection:
            tenant_rows.require(connection, tenant)
            entry = patch_rows.find(connection, name)
            rejected = entry.status == "rejected"
            if rejected and not override:
                reason = f": {entry.reason}" if entry.reason else ""
                raise EditError(
                    f"{short(name)} was rejected by its gate{reason}; mend the patch and compile it again, "
                    "or publish it with --override and a reason"
                )
            if publication_rows.active(connection, tenant) != name:
                publication_rows.add(connection, tenant, name, why=why, override=override and rejected, by=by)
            return name

    def rollback(self, tenant: str, to: str | None = None, why: str = "", by: str = "") -> str | None:
        """Serve the tenant what it had before (or the earlier `to` of its history), and return that name.

        Before the first publication there was the base model: then the answer is None.

        Raises:
            EditError: the tenant is served no patch, or `to` is not in its history.
        """
        with self._database.change() as connection:
            tenant_rows.require(connection, tenant)
            return publication_rows.take_back(connection, tenant, to, why=why, by=by)

    def history(self, tenant: str) -> list[Publication]:
        """The tenant's publications, newest first, rolled-back ones included."""
        with self._database.read() as connection:
            tenant_rows.require(connection, tenant)
            return publication_rows.history(connection, tenant)

    def published(self) -> set[str]:
        """Names that some tenant is served, or could be after a rollback."""
        with self._database.read() as connection:
            return publication_rows.standing_names(connection)

    def generation(self) -> int:
        """Number of changes so far; equal numbers mean that nothing changed in between."""
        return self._database.generation()
