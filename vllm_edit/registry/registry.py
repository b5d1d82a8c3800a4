"""The registry: patches and their adapter ids, what each tenant is served, and API keys.

Each state change is one transaction (`transactions`): the rows, the audit row and the next generation are written
through one connection. The functions of `patches`, `tenants`, `publications`, `rollouts` and `api_keys` write and read
the rows. Callers get values, never rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import get_args

from sqlalchemy import URL, Connection

from vllm_edit.errors import EditError
from vllm_edit.instant import is_instant
from vllm_edit.names import LABEL_LENGTH, REASON_LENGTH, check_note, shown
from vllm_edit.registry import api_keys, audit, patches, publications, rollouts, snapshot, tenants
from vllm_edit.registry.admission import Admission
from vllm_edit.registry.answers import Answers
from vllm_edit.registry.api_keys import ADMIN_RIGHTS, AUTHOR_RIGHTS, TENANT_RIGHTS, ApiKey, NewApiKey, Right
from vllm_edit.registry.audit import ANCHOR, EMPTY, Anchor, AuditEntry, Verified
from vllm_edit.registry.database import Database
from vllm_edit.registry.jobs import Jobs
from vllm_edit.registry.notifications import waiting
from vllm_edit.registry.owner import Owner
from vllm_edit.registry.patches import PatchEntry, Status
from vllm_edit.registry.publications import Publication, publishable_until, served, served_at
from vllm_edit.registry.retirement import Retired
from vllm_edit.registry.revision import Revision
from vllm_edit.registry.rollout_guard import RolloutGuard
from vllm_edit.registry.rollouts import Rollouts
from vllm_edit.registry.servers import Servers
from vllm_edit.registry.shadows import Shadows
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.registry.tenants import Tenant
from vllm_edit.registry.transactions import Change, Changes
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.buckets import BUCKETS, buckets_of
from vllm_edit.rollout.decision import TenantState


class Registry:
    """Registry in a SQL database: SQLite by default, PostgreSQL by its URL."""

    def __init__(
        self,
        url: str | URL,
        anchor: Anchor | None = None,
        owner: Owner | None = None,
        admit: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Configure the registry; the first use connects and brings the schema up to date.

        Args:
            url: SQLAlchemy URL of the database.
            anchor: Stores the head of the audit outside the database.
            owner: The store; the first use raises `Incompatible` if the registry belongs to another store.
            admit: Raises if a patch may not be published, whatever its gate says: its signature is missing.
        """
        self._anchor, self._owner = anchor, owner
        self._database = Database(url, self._refuse_to_begin, check=self._check_owner)
        self.changes = Changes(self._database, anchor, owner)
        self._admission = Admission(self._database, admit)
        self.rollouts = Rollouts(self._database, self.changes, self._admission)
        self.retired = Retired(self._database, self.changes)
        self.guard = RolloutGuard(self._database, self.changes)
        self.servers = Servers(self._database, self.changes)
        self.answers = Answers(self._database)
        self.shadows = Shadows(self._database)
        self.jobs = Jobs(self._database, self.changes)
        self._waiting = waiting(self._database)

    def __repr__(self) -> str:
        return f"Registry({str(self._database)!r})"

    @property
    def url(self) -> URL:
        return self._database.url

    def close(self) -> None:
        """Close all connections; a `wait_for_change` in another thread returns."""
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
        """Insert a patch, or mark a known patch as saved again (it becomes the newest; id and status stay).

        A patch that gc is removing is restored after the removal.

        Args:
            name: The patch with its digest.
            valid_until: The earliest end of validity of its edits.
            by: Who saves it, for the audit.
            has_files: Returns whether the patch's files exist.
            write_files: Writes the patch's files.
        """
        with self.changes.make("patch.save", by=by) as change:
            if name not in patches.retired(change.connection) and has_files():
                return _entered(change, name, valid_until)
        with self.retired.settled():
            write_files()
            with self.changes.make("patch.save", by=by) as change:
                return _entered(change, name, valid_until)

    def enter_patch(self, name: str, valid_until: datetime | None, has_files: Callable[[], bool]) -> None:
        """Insert a patch whose writer was killed before it did; do nothing if it is known, retired or has no files."""
        with self.changes.make("patch.save") as change:
            unknown = patches.known(change.connection, name) is None
            if unknown and name not in patches.retired(change.connection) and has_files():
                change.record(None, patches.add(change.connection, name, valid_until))

    def patch(self, name: str) -> PatchEntry:
        with self._database.read() as connection:
            return patches.find(connection, name)

    def patches(self) -> list[PatchEntry]:
        """Return all patches, the last saved first."""
        with self._database.read() as connection:
            return patches.newest_first(connection)

    def set_status(self, name: str, status: Status, reason: str = "", by: str = "") -> None:
        """Record the gate's verdict on a patch. Publications stay in force."""
        if status not in get_args(Status):
            raise EditError(f"expected a status from {', '.join(get_args(Status))}, got {shown(status)}")
        with self.changes.make("patch.judge", by=by) as change:
            old = patches.find(change.connection, name)
            patches.set_status(change.connection, name, status, reason)
            change.record(old, patches.find(change.connection, name))

    # Tenants and what they are served

    def create_tenant(self, name: str, by: str = "") -> Tenant:
        with self.changes.make("tenant.create", tenant=name, by=by) as change:
            tenant = tenants.create(change.connection, name)
            change.record(None, tenant)
            return tenant

    def tenants(self) -> list[Tenant]:
        """Return all tenants by name, each with what it is served."""
        with self._database.read() as connection:
            return tenants.by_name(connection, rollouts.governing(connection))

    def active(self, tenant: str, at: datetime | None = None) -> str | None:
        """Return the name that is published for the tenant now or at time `at`; None for the base model.

        A rollout may serve another composition: see `served`.
        """
        publications = self.history(tenant)
        found = served(publications, datetime.now(UTC)) if at is None else served_at(publications, at)
        return None if found is None else found.name

    def state(self, tenant: str) -> TenantState:
        """Return the state that decides the tenant's requests: its publication and its governing rollout."""
        with self._database.read() as connection:
            tenants.require(connection, tenant)
            return tenants.state(connection, tenant, rollouts.governing(connection))

    def served(self, tenant: str) -> Arm:
        """Return the arm that the tenant is served now: its governing rollout's, else what is published."""
        return self.state(tenant).served(datetime.now(UTC))

    def publish(
        self,
        tenant: str,
        name: str,
        why: str = "",
        override: str = "",
        by: str = "",
        valid_until: datetime | None = None,
    ) -> bool:
        """Serve `name` to the tenant from now on. Return False if it is active already: then nothing changes.

        Args:
            tenant: The tenant.
            name: The compiled patch or composition.
            why: Reason for the audit.
            override: Reason to publish a patch that its gate did not accept; requires `by`.
            by: Who publishes.
            valid_until: When the publication expires; an edit may expire earlier.

        Raises:
            EditError: the patch is not accepted and there is no override, it has expired, or a rollout is running.
            Unsigned: the store requires a signature, and the patch has no valid one.
        """
        override = check_note(override, "a reason for the override", REASON_LENGTH)
        self._admission.check(tenant, [name])
        with self.changes.make("tenant.publish", tenant=tenant, by=by, why=why or override) as change:
            tenants.require(change.connection, tenant)
            rollouts.refuse_running(change.connection, tenant)
            entry = patches.find(change.connection, name)
            ends = publishable_until(entry, override=override, by=by, valid_until=valid_until)
            active = publications.active(change.connection, tenant)
            closed = rollouts.close(change.connection, tenant)
            if closed:
                change.record(_active(active), {"active": name, "valid_until": ends, "closes": closed})
            if active is None or (active.name, active.valid_until) != (name, ends):
                overridden = entry.status != "accepted"
                publications.add(
                    change.connection,
                    tenant,
                    name,
                    why=change.why,
                    override=overridden,
                    by=change.who,
                    valid_until=ends,
                )
                gate = {"status": entry.status, "reason": entry.reason, "override": override if overridden else ""}
                new = {"active": name, "valid_until": ends, "gate": gate}
                change.record(_active(active), new | ({"closes": closed} if closed else {}))
            return change.recorded is not None

    def rollback(self, tenant: str, to: str | None = None, why: str = "", by: str = "") -> str | None:
        """Serve the tenant its previous publication, or the earlier `to`, and return that name; None: the base model.

        A rollout that governs the tenant is closed instead, and the current publication decides again.

        Raises:
            EditError: the tenant is served no patch, or `to` is not in its history.
        """
        with self.changes.make("tenant.rollback", tenant=tenant, by=by, why=why) as change:
            tenants.require(change.connection, tenant)
            before = publications.active(change.connection, tenant)
            governed = any(rollout.governs for rollout in rollouts.standing(change.connection, tenant))
            closed = rollouts.close(change.connection, tenant)
            if governed and to in (None, before and before.name):
                after = before
            else:
                after = publications.take_back(change.connection, tenant, to, why=change.why, by=change.who)
            change.record(_active(before), _active(after) | ({"closes": closed} if closed else {}))
            return None if after is None else after.name

    def history(self, tenant: str) -> list[Publication]:
        """Return the tenant's publications, newest first, including those that are rolled back."""
        with self._database.read() as connection:
            tenants.require(connection, tenant)
            return publications.history(connection, tenant)

    def published(self) -> set[str]:
        """Return the names that any tenant is served, or could be after a rollback, by the database's clock."""
        with self._database.read() as connection:
            now = self._database.now(connection)
            return publications.standing_names(connection, now) | set(rollouts.names_in_use(connection, now))

    def served_to(self) -> dict[str, list[str]]:
        """Return, by name, the tenants that are served it now, including all arms of their rollouts."""
        with self._database.read() as connection:
            governing = rollouts.governing(connection)
        served: dict[str, list[str]] = {}
        for tenant in self.tenants():
            arms = (arm.name for rollout in governing.get(tenant.name, ()) for arm in rollout.served)
            for name in {tenant.active, *arms} - {None}:
                served.setdefault(str(name), []).append(tenant.name)
        return served

    def set_holdout(self, tenant: str, percent: float, why: str = "", by: str = "") -> Tenant:
        """Keep `percent` of the tenant's users out of all rollouts that are made from now on; return the tenant.

        A larger holdout contains a smaller one.

        Raises:
            EditError: a rollout of the tenant is open, whose users would change, or the percentage is invalid.
        """
        buckets = buckets_of(percent)
        if buckets == BUCKETS:
            raise EditError("expected a holdout of less than 100 per cent, or no user could be in a rollout")
        with self.changes.make("tenant.holdout", tenant=tenant, by=by, why=why) as change:
            connection = change.connection
            tenants.require(connection, tenant)
            for rollout in rollouts.standing(connection, tenant):
                if rollout.open:
                    raise EditError(
                        f"rollout {rollout.name!r} of tenant {tenant!r} is {rollout.state}; promote or kill it first"
                    )
            before = tenants.holdout(connection, tenant)
            if buckets != before:
                tenants.set_holdout(connection, tenant, buckets)
                change.record({"holdout": before * 100 / BUCKETS}, {"holdout": percent})
            (found,) = (
                one for one in tenants.by_name(connection, rollouts.governing(connection)) if one.name == tenant
            )
            return found

    # API keys

    def create_api_key(
        self,
        tenant: str | None,
        *,
        base: bool = True,
        author: bool = False,
        label: str = "",
        expires_at: datetime | None = None,
        by: str = "",
    ) -> NewApiKey:
        """Create an API key. Only the return value holds its full text.

        Args:
            tenant: The key's tenant; None makes an administrator's key.
            base: Whether a tenant's key may request the base model.
            author: Whether a tenant's key may submit patches to be compiled.
            label: Free text that helps to recognize the key.
            expires_at: When the key expires.
            by: Who creates it, for the audit.
        """
        label = check_note(label, "a label", LABEL_LENGTH)
        if expires_at is not None and (not is_instant(expires_at) or expires_at <= datetime.now(UTC)):
            raise EditError(
                "expected a future time with a zone, like 2100-01-31T12:00:00Z, before the year 10000 in UTC, got "
                f"{expires_at}"
            )
        rights: tuple[Right, ...] = tuple(right for right in TENANT_RIGHTS if base or right != "base")
        rights += AUTHOR_RIGHTS if author else ()
        with self.changes.make("key.create", tenant=tenant, by=by) as change:
            if tenant is None:
                rights = ADMIN_RIGHTS
            else:
                tenants.require(change.connection, tenant)
            made = api_keys.add(change.connection, tenant, rights, label=label, expires_at=expires_at, by=change.who)
            change.record(None, made.api_key.info)
            return made

    def api_keys(self, tenant: str | None = None) -> list[ApiKey]:
        """Return all API keys or a tenant's, the oldest first, including revoked and expired keys."""
        with self._database.read() as connection:
            if tenant is not None:
                tenants.require(connection, tenant)
            return [found for found in api_keys.oldest_first(connection) if tenant in (None, found.tenant)]

    def revoke_api_key(self, id: str, tenant: str | None = None, why: str = "", by: str = "") -> ApiKey:
        """Revoke an API key permanently; with `tenant`, only if it is that tenant's. `id`: its id, or the whole key."""
        with self._database.read() as connection:
            key = api_keys.find(connection, id)
        if tenant not in (None, key.tenant):
            raise EditError(
                f"key {key.id} does not belong to tenant {shown(str(tenant))}; `vllm-edit key list` shows its tenant"
            )
        with self.changes.make("key.revoke", tenant=key.tenant, by=by, why=why) as change:
            revoked = api_keys.revoke(change.connection, key.id, by=change.who, why=change.why)
            change.record(key.info, revoked.info)
            return revoked

    # The whole state

    def now(self) -> datetime:
        """Return the time by the database's own clock, which is the same for every machine."""
        with self._database.read() as connection:
            return self._database.now(connection)

    def generation(self) -> int:
        """Return the number of changes so far. See `revision` for what it does not tell."""
        return self.revision().generation

    def revision(self) -> Revision:
        """Return what identifies the present state; equal revisions mean that nothing changed in between."""
        return self._database.revision()

    def wait_for_change(self, generation: int, timeout_s: float, token: str | None = None) -> bool:
        """Return True as soon as the revision differs from the known one; False after `timeout_s` or `close`.

        Args:
            generation: The known generation.
            timeout_s: Maximum duration in seconds.
            token: The known token; None compares the generation only.

        Raises:
            EditError: the registry cannot be reached. Call again later: no change meanwhile is missed.
        """
        return self._waiting.wait(Revision(generation, token), timeout_s)

    def snapshot(self) -> Snapshot:
        """Return the state that a server decides requests from, read in one transaction."""
        with self._database.read(following=True) as connection:
            return snapshot.read(connection)

    def audit(self, tenant: str | None = None, newest: int | None = None, what: str = "") -> list[AuditEntry]:
        """Return the audit's rows, oldest first: all, those of `tenant`, or the last `newest` of them.

        Args:
            tenant: only rows of this tenant.
            newest: only the last so many rows.
            what: only changes whose names begin so, like `signer.`.

        Raises:
            NotFound: there is no such tenant.
        """
        with self._database.read() as connection:
            if tenant is not None:
                tenants.require(connection, tenant)
            return audit.in_order(connection, tenant, newest, what)

    def problems(self) -> Iterator[str]:
        """Yield the problems of the database and its audit, one line each.

        Raises:
            Corrupt: as `verify_audit` does.
            EditError: the database cannot be used at all.
        """
        yield from self._database.problems()
        yield from (f"audit ({ANCHOR}): {problem}" for problem in self.verify_audit().problems)

    def verify_audit(self) -> Verified:
        """Verify the audit's chain and its anchor. Without an anchor, rows removed at the end are not detected.

        Raises:
            Corrupt: the anchor's file holds no head.
        """
        # Read the anchor first: rows that are committed later are then ahead of it, and do not appear as removed.
        anchored = self._anchor.read() if self._anchor is not None else EMPTY
        return audit.verify(self.audit(), anchored)

    def establish(self, write_site: Callable[[], object]) -> None:
        """Claim the registry for a new store, and create the store.

        Args:
            write_site: Creates the store, inside the transaction: of two stores that are created at once with this
                registry, only one succeeds.

        Raises:
            EditError: the registry belongs to another store.
        """
        with self._database.log() as connection:
            if self._owner is not None:
                self._owner.enter(connection)
            write_site()

    def unowned(self) -> Registry:
        """Return the same registry without the check of its owner, for inspection."""
        return Registry(self.url, self._anchor)

    def _check_owner(self, connection: Connection) -> None:
        if self._owner is not None:
            self._owner.check(connection)

    def _refuse_to_begin(self) -> None:
        """Raise if the database is empty but the anchor records changes: it is not the database of those changes.

        Using it would lose the store's tenants and assign adapter ids twice.
        """
        anchored = self._anchor.read() if self._anchor is not None else None
        if anchored is not None and anchored.number:
            raise EditError(
                f"the registry {self._database} is empty, but {ANCHOR} records {anchored.number} changes: restore the "
                f"database from a copy, or name the right one; to start a new registry, remove {ANCHOR} first"
            )


def _entered(change: Change, name: str, valid_until: datetime | None) -> PatchEntry:
    old = patches.known(change.connection, name)
    entry = patches.add(change.connection, name, valid_until)
    change.record(old, entry)
    return entry


def _active(publication: Publication | None) -> dict[str, str | datetime | None]:
    if publication is None:
        return {"active": None, "valid_until": None}
    return {"active": publication.name, "valid_until": publication.valid_until}
