"""The registry: which patches exist and under which adapter id, what each tenant is served, and who may ask.

One transaction per state change: what belongs together is written through one connection (`patch_rows`, `tenant_rows`,
`publication_rows`, `key_rows`), with the change's row of the audit and its step of the generation (`changes`). Callers
get values, never rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import URL, Connection, select

from vllm_edit.errors import EditError
from vllm_edit.names import LABEL_LENGTH, check_note, shown
from vllm_edit.registry import audit_rows, key_rows, patch_rows, publication_rows, rollout_rows, tables, tenant_rows
from vllm_edit.registry.anchor import ANCHOR, Anchor
from vllm_edit.registry.answers import Answers
from vllm_edit.registry.audit import EMPTY, AuditEntry, Verified, verify
from vllm_edit.registry.changes import Change, Changes
from vllm_edit.registry.database import Database
from vllm_edit.registry.entries import PatchEntry, Publication, Status, Tenant, served, served_at
from vllm_edit.registry.keys import ADMIN_RIGHTS, TENANT_RIGHTS, Key, NewKey, Right
from vllm_edit.registry.owner import Owner
from vllm_edit.registry.publishable import publishable_until
from vllm_edit.registry.retired import Retired
from vllm_edit.registry.rollouts import Rollouts
from vllm_edit.registry.servers import Servers
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.registry.waiting import waiting
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.decision import TenantState


class Registry:
    """Registry in a SQL database: SQLite by default, PostgreSQL by its URL.

    anchor: where the head of the audit is kept outside the database; a store has one. owner: the store; a registry
    that belongs to another one is refused when it is first used.
    """

    def __init__(self, url: str | URL, anchor: Anchor | None = None, owner: Owner | None = None) -> None:
        """Nothing is connected yet. The first use brings the schema up to date."""
        self._anchor, self._owner = anchor, owner
        self._database = Database(url, self._refuse_to_begin, check=self._check_owner)
        self.changes = Changes(self._database, anchor, owner)
        self.rollouts = Rollouts(self._database, self.changes)
        self.retired = Retired(self._database, self.changes)
        self.servers = Servers(self._database, self.changes)
        self.answers = Answers(self._database)
        self._waiting = waiting(self._database)

    def __repr__(self) -> str:
        return f"Registry({str(self._database)!r})"

    @property
    def url(self) -> URL:
        return self._database.url

    def close(self) -> None:
        """Give connections back; a `wait_for_change` in another thread ends."""
        self._waiting.close()
        self._database.close()

    # Patches

    def add_patch(
        self,
        name: str,
        valid_until: datetime | None = None,
        by: str = "",
        has_files: Callable[[], bool] = lambda: True,
        write_files: Callable[[], object] = lambda: None,
    ) -> PatchEntry:
        """Enter a patch, or mark a known one as saved again (it becomes its patch's newest; id and status stay).

        has_files, write_files: tells whether the patch's files are there, and puts them there. What gc is removing is
        put back when that is done.
        """
        with self.changes.make("patch.save", by=by) as change:
            if name not in patch_rows.retired(change.connection) and has_files():
                return _entered(change, name, valid_until)
        with self.retired.settled():
            write_files()
            with self.changes.make("patch.save", by=by) as change:
                return _entered(change, name, valid_until)

    def enter_patch(self, name: str, valid_until: datetime | None, has_files: Callable[[], bool]) -> None:
        """Enter a patch whose writer was killed before it did. What is known, retired or gone by now stays so."""
        with self.changes.make("patch.save") as change:
            unknown = patch_rows.known(change.connection, name) is None
            if unknown and name not in patch_rows.retired(change.connection) and has_files():
                change.tells(None, patch_rows.add(change.connection, name, valid_until))

    def patch(self, name: str) -> PatchEntry:
        with self._database.read() as connection:
            return patch_rows.find(connection, name)

    def patches(self) -> list[PatchEntry]:
        """All patches, the one saved last first."""
        with self._database.read() as connection:
            return patch_rows.newest_first(connection)

    def set_status(self, name: str, status: Status, reason: str = "", by: str = "") -> None:
        """Record what the gate said of a patch. What is published stays published."""
        if status not in get_args(Status):
            raise EditError(f"expected a status among {', '.join(get_args(Status))}, got {shown(status)}")
        with self.changes.make("patch.judge", by=by) as change:
            old = patch_rows.find(change.connection, name)
            patch_rows.set_status(change.connection, name, status, reason)
            change.tells(old, patch_rows.find(change.connection, name))

    # Tenants and what they are served

    def create_tenant(self, name: str, by: str = "") -> Tenant:
        with self.changes.make("tenant.create", tenant=name, by=by) as change:
            tenant = tenant_rows.create(change.connection, name)
            change.tells(None, tenant)
            return tenant

    def tenants(self) -> list[Tenant]:
        """All tenants by name, each with what it is served."""
        with self._database.read() as connection:
            return tenant_rows.by_name(connection)

    def active(self, tenant: str, at: datetime | None = None) -> str | None:
        """The name that is published for the tenant, or was or will be at some time; None for the base model.

        A rollout may serve another one: `served`.
        """
        publications = self.history(tenant)
        found = served(publications, datetime.now(UTC)) if at is None else served_at(publications, at)
        return None if found is None else found.name

    def state(self, tenant: str) -> TenantState:
        """What decides the tenant's requests: what is published, and the rollout that governs it."""
        with self._database.read() as connection:
            tenant_rows.require(connection, tenant)
            return tenant_rows.state(connection, tenant)

    def served(self, tenant: str) -> Arm:
        """What the tenant is served now: by the rollout that governs it, else what is published."""
        return self.state(tenant).served(datetime.now(UTC))

    def publish(
        self,
        tenant: str,
        name: str,
        why: str = "",
        override: str = "",
        by: str = "",
        valid_until: datetime | None = None,
    ) -> str:
        """Serve `name` to the tenant from now on, and return it. Publishing what is active already changes nothing.

        override: why a patch that its gate did not accept is published all the same; it needs `by`, somebody's name.
        valid_until: when it ends by itself; one of its edits may say an earlier time.

        Raises:
            EditError: the patch is not accepted and there is no override, it has ended, or a rollout is running.
        """
        with self.changes.make("tenant.publish", tenant=tenant, by=by, why=why or override) as change:
            tenant_rows.require(change.connection, tenant)
            rollout_rows.refuse_running(change.connection, tenant)
            entry = patch_rows.find(change.connection, name)
            ends = publishable_until(entry, override=override, by=by, valid_until=valid_until)
            active = publication_rows.active(change.connection, tenant)
            closed = rollout_rows.close(change.connection, tenant)
            if closed:
                change.tells(_active(active), {"active": name, "valid_until": ends, "closes": closed})
            if active is None or (active.name, active.valid_until) != (name, ends):
                overridden = entry.status != "accepted"
                publication_rows.add(
                    change.connection,
                    tenant,
                    name,
                    why=change.why,
                    override=overridden,
                    by=change.who,
                    valid_until=ends,
                )
                gate = {"status": entry.status, "reason": entry.reason, "override": override if overridden else ""}
                told = {"active": name, "valid_until": ends, "gate": gate}
                change.tells(_active(active), told | ({"closes": closed} if closed else {}))
            return name

    def rollback(self, tenant: str, to: str | None = None, why: str = "", by: str = "") -> str | None:
        """Serve the tenant what it had before (or the earlier `to` of its history), and return that name.

        Before the first publication there was the base model: then the answer is None. While a rollout decides, that
        is what is taken back, and what is published decides again.

        Raises:
            EditError: the tenant is served no patch, or `to` is not in its history.
        """
        with self.changes.make("tenant.rollback", tenant=tenant, by=by, why=why) as change:
            tenant_rows.require(change.connection, tenant)
            before = publication_rows.active(change.connection, tenant)
            governed = any(one.governs for one in rollout_rows.standing(change.connection, tenant))
            closed = rollout_rows.close(change.connection, tenant)
            if governed and to in (None, before and before.name):
                after = before
            else:
                after = publication_rows.take_back(change.connection, tenant, to, why=why, by=change.who)
            change.tells(_active(before), _active(after) | ({"closes": closed} if closed else {}))
            return None if after is None else after.name

    def history(self, tenant: str) -> list[Publication]:
        """The tenant's publications, newest first, rolled-back ones included."""
        with self._database.read() as connection:
            tenant_rows.require(connection, tenant)
            return publication_rows.history(connection, tenant)

    def published(self) -> set[str]:
        """Names that some tenant is served, or could be after a rollback."""
        with self._database.read() as connection:
            return publication_rows.standing_names(connection) | set(rollout_rows.names_in_use(connection))

    # Keys

    def create_key(
        self,
        tenant: str | None,
        *,
        base: bool = True,
        label: str = "",
        expires_at: datetime | None = None,
        by: str = "",
    ) -> NewKey:
        """Make a key of a tenant, or of an administrator (None). Its text is in the answer and nowhere else.

        base: a tenant's key may ask for the base model.
        """
        check_note(label, "a label", LABEL_LENGTH)
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= datetime.now(UTC)):
            raise EditError(f"expected an end to come, with its zone, like 2100-01-31T12:00:00Z, got {expires_at}")
        rights: tuple[Right, ...] = tuple(right for right in TENANT_RIGHTS if base or right != "base")
        with self.changes.make("key.create", tenant=tenant, by=by) as change:
            if tenant is None:
                rights = ADMIN_RIGHTS
            else:
                tenant_rows.require(change.connection, tenant)
            made = key_rows.add(change.connection, tenant, rights, label=label, expires_at=expires_at, by=change.who)
            change.tells(None, made.key.as_dict())
            return made

    def keys(self, tenant: str | None = None) -> list[Key]:
        """All keys or a tenant's, the oldest first, revoked and expired ones too."""
        with self._database.read() as connection:
            if tenant is not None:
                tenant_rows.require(connection, tenant)
            return [key for key in key_rows.oldest_first(connection) if tenant in (None, key.tenant)]

    def revoke_key(self, id: str, tenant: str | None = None, why: str = "", by: str = "") -> Key:
        """Revoke a key for good; with `tenant`, only if it is that tenant's."""
        with self._database.read() as connection:
            key = key_rows.find(connection, id)
        if tenant not in (None, key.tenant):
            raise EditError(
                f"key {id} is not one of tenant {shown(str(tenant))}; `vllm-edit key list` tells whose it is"
            )
        with self.changes.make("key.revoke", tenant=key.tenant, by=by, why=why) as change:
            revoked = key_rows.revoke(change.connection, id, by=change.who, why=why)
            change.tells(key.as_dict(), revoked.as_dict())
            return revoked

    # All of it

    def generation(self) -> int:
        """Number of changes so far; equal numbers mean that nothing changed in between."""
        return self._database.generation()

    def wait_for_change(self, generation: int, timeout_s: float) -> bool:
        """True as soon as the generation is another than that; False when the time is up, or `close` was called.

        Raises:
            EditError: the registry cannot be reached. Call again later: no change meanwhile is missed.
        """
        return self._waiting.wait(generation, timeout_s)

    def snapshot(self) -> Snapshot:
        """The state that a server decides requests from, read in one transaction."""
        with self._database.read(following=True) as connection:
            generation = connection.execute(select(tables.generation.c.value)).scalar_one()
            patches, standing = tuple(patch_rows.newest_first(connection)), publication_rows.standing(connection)
            tenants = [tenant.name for tenant in tenant_rows.by_name(connection)]
            # Of an ended publication gc takes the patch: for a server whose clock is behind gc's it has ended too.
            there = {patch.name for patch in patches}
            return Snapshot(
                generation,
                patches,
                {
                    tenant: tuple(
                        one for one in standing.get(tenant, ()) if one.valid_until is None or one.name in there
                    )
                    for tenant in tenants
                },
                {key.id: key for key in key_rows.oldest_first(connection)},
                rollout_rows.governing(connection),
            )

    def audit(self, tenant: str | None = None, newest: int | None = None) -> list[AuditEntry]:
        """The rows of the audit, oldest first; of one tenant, or the `newest` so many, if asked."""
        with self._database.read() as connection:
            if tenant is not None:
                tenant_rows.require(connection, tenant)
            return audit_rows.in_order(connection, tenant, newest)

    def problems(self) -> Iterator[str]:
        """What is wrong with the database or its audit, one line each.

        Raises:
            Corrupt: as `verify_audit` does.
            EditError: the database cannot be used at all.
        """
        yield from self._database.problems()
        yield from (f"audit ({ANCHOR}): {problem}" for problem in self.verify_audit().problems)

    def verify_audit(self) -> Verified:
        """Hold the chain of changes against itself and its anchor (without one, rows cut at the end are not found).

        Raises:
            Corrupt: the anchor's file holds no head.
        """
        # The anchor first: what is committed after that is ahead of it, and not missing.
        anchored = self._anchor.read() if self._anchor is not None else EMPTY
        return verify(self.audit(), anchored)

    def establish(self, write_site: Callable[[], object]) -> None:
        """Make the registry that of the store which is being made. write_site: makes the store, within the change: of
        two that are made at once with this registry, one is.

        Raises:
            EditError: it belongs to another store.
        """
        with self._database.log() as connection:
            if self._owner is not None:
                self._owner.enter(connection)
            write_site()

    def unowned(self) -> Registry:
        """The same one to look at, whosever it is."""
        return Registry(self.url, self._anchor)

    def _check_owner(self, connection: Connection) -> None:
        if self._owner is not None:
            self._owner.check(connection)

    def _refuse_to_begin(self) -> None:
        """An empty database where changes were made before is another one than they were made in. What would come of
        it is a store whose tenants are unknown, and adapter ids that are given twice."""
        anchored = self._anchor.read() if self._anchor is not None else None
        if anchored is not None and anchored.number:
            raise EditError(
                f"the registry {self._database} is empty, but {ANCHOR} knows of {anchored.number} changes: restore the "
                f"database from a copy, or name the right one; if a new one is meant, remove {ANCHOR} first"
            )


def _entered(change: Change, name: str, valid_until: datetime | None) -> PatchEntry:
    old = patch_rows.known(change.connection, name)
    entry = patch_rows.add(change.connection, name, valid_until)
    change.tells(old, entry)
    return entry


def _active(publication: Publication | None) -> dict[str, Any]:
    if publication is None:
        return {"active": None, "valid_until": None}
    return {"active": publication.name, "valid_until": publication.valid_until}
