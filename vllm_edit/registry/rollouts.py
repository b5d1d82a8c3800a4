"""Rollouts of the registry: creation and state changes, exposures and outcomes.

Functions with a connection run in their caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from vllm_edit.errors import EditError, NotFound
from vllm_edit.names import REASON_LENGTH, check_note, is_label, nearest, shown
from vllm_edit.registry import exposures, limit_decisions, patches, shadows, tenants
from vllm_edit.registry.admission import Admission
from vllm_edit.registry.database import Database
from vllm_edit.registry.leases import GUARDRAILS, Leases
from vllm_edit.registry.publications import publishable_until
from vllm_edit.registry.tables import rollouts
from vllm_edit.registry.transactions import Changes
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.outcomes import Exposure, metric_of
from vllm_edit.rollout.rollout import Rollout, RolloutRecord, Verb
from vllm_edit.rollout.rollout_report import RolloutReport, report
from vllm_edit.rollout.schedule import Schedule
from vllm_edit.rollout.shadow import Shadow

_JSON = TypeAdapter(Rollout)
_FIXED = TypeAdapter(dict[str, Any])
_SCHEDULE, _SHADOW = TypeAdapter(Schedule), TypeAdapter(Shadow)
_MOVING = ("state", "share", "closed")
_COLUMNS = {"name", "tenant", *_MOVING}
_OWN = {*_COLUMNS, "schedule", "shadow"}


@dataclass(frozen=True)
class RolloutEntry:
    """A rollout with the times of its creation and last change."""

    rollout: Rollout
    created_at: datetime
    changed_at: datetime

    def as_record(self) -> RolloutEntryRecord:
        return RolloutEntryRecord(
            **vars(self.rollout.as_record()), created_at=self.created_at, changed_at=self.changed_at
        )


@dataclass(frozen=True)
class RolloutEntryRecord(RolloutRecord):
    """A `RolloutEntry` as JSON shows it."""

    created_at: datetime
    changed_at: datetime


class Rollouts:
    """A registry's rollouts. Every step is an audited change; exposures and outcomes are a log."""

    def __init__(self, database: Database, changes: Changes, admission: Admission) -> None:
        self._database, self._changes, self._admission = database, changes, admission

    def create(
        self, rollout: Rollout, *, control_served: bool = False, override: str = "", why: str = "", by: str = ""
    ) -> Rollout:
        """Insert a rollout, and return it with the expiry of its arms. It serves nobody before its first ramp.

        Args:
            rollout: The rollout.
            control_served: Replace its control by what the tenant is served at this change. Nobody then gets back what
                was served when the rollout was drafted.
            override: Reason to serve an arm that its gate did not accept; requires `by`.
            why: Reason for the audit.
            by: Who creates it.

        Raises:
            EditError: the name is taken, the tenant has an open rollout, an arm may not be served, or the tenant is
                served the treatment already.
            Unsigned: the store requires a signature, and an arm's patch has no valid one.
        """
        override = check_note(override, "a reason for the override", REASON_LENGTH)
        names = [arm.name for arm in (rollout.control, rollout.treatment) if arm.name is not None]
        self._admission.check(rollout.tenant, names)
        with self._changes.make("rollout.create", tenant=rollout.tenant, by=by, why=why or override) as change:
            connection = change.connection
            tenants.require(connection, rollout.tenant)
            if control_served:
                state = tenants.state(connection, rollout.tenant, governing(connection))
                rollout = replace(rollout, control=state.served(datetime.now(UTC)))
            rollout = replace(rollout, audience=tenants.audience(connection, rollout.tenant, rollout.audience))
            for other in standing(connection, rollout.tenant):
                if other.open and (problems := rollout.problems_beside(other)):
                    raise EditError("\n".join(problems))
            arms = {
                side: _servable(connection, rollout.tenant, arm, override, by)
                for side, arm in (("control", rollout.control), ("treatment", rollout.treatment))
            }
            made = replace(rollout, control=arms["control"], treatment=arms["treatment"])
            add(connection, made)
            change.record(None, asdict(made.as_record()) | ({"override": override} if override else {}))
            return made

    def ramp(self, name: str, percent: float, *, why: str = "", by: str = "") -> Rollout:
        """Let `percent` of the sticky keys take part. The first ramp replaces the tenant's previous, ended rollout."""
        return self._step("ramp", name, lambda rollout: rollout.ramped(percent), why, by)

    def follow(self, name: str, schedule: Schedule, *, why: str = "", by: str = "") -> Rollout:
        """Ramp to the schedule's first share; a server takes the later steps when they are due."""
        with self._database.read() as connection:
            now = self._database.now(connection)
        return self._step("ramp", name, lambda rollout: rollout.scheduled(schedule, now), why, by)

    def pause(self, name: str, *, why: str = "", by: str = "") -> Rollout:
        return self._step("pause", name, Rollout.paused, why, by)

    def kill(self, name: str, *, why: str = "", by: str = "") -> Rollout:
        """Serve control to everyone. Closes a rollout created while this one was promoted: its control differs."""
        return self._step("kill", name, Rollout.killed, why, by)

    def promote(self, name: str, *, why: str = "", by: str = "") -> Rollout:
        return self._step("promote", name, Rollout.promoted, why, by)

    def shadow(self, name: str, shadow: Shadow | None, *, why: str = "", by: str = "") -> Rollout:
        """Repeat a share of the answers by the other arm from now on; None for none."""
        return self._step("shadow", name, lambda rollout: rollout.shadowed(shadow), why, by)

    def find(self, name: str) -> Rollout:
        with self._database.read() as connection:
            return find(connection, name).rollout

    def newest_first(self, tenant: str | None = None) -> list[RolloutEntry]:
        """Return all rollouts or a tenant's, the newest first."""
        with self._database.read() as connection:
            if tenant is not None:
                tenants.require(connection, tenant)
            return newest_first(connection, tenant)

    def expose(self, found: Iterable[Exposure]) -> None:
        """Log a batch of requests that rollouts decided. Known ids stay unchanged, so a batch may be repeated."""
        with self._database.log() as connection:
            exposures.expose(connection, found)

    def record(self, tenant: str | None, id: str, metric: str, value: float) -> bool:
        """Log an outcome of the answer `id`.

        Args:
            tenant: The tenant that the answer must belong to; None for a server without API keys, where the id itself,
                which cannot be guessed, authorizes the caller.
            id: The answer's id.
            metric: Name of one of the rollout's metrics.
            value: The outcome.

        Returns:
            False if the same value was logged before.

        Raises:
            UnknownAnswer: no rollout decided such an answer of this tenant.
            NotFound: the rollout has no such metric.
            EditError: the value is out of range, or a different value was logged before.
        """
        try:
            return self._record(tenant, id, metric, value)
        except IntegrityError:  # another process logged it between our read and our write: the second read finds it
            return self._record(tenant, id, metric, value)

    def report(self, name: str) -> RolloutReport:
        """Evaluate the rollout on everything logged so far. Repeated looks keep the error rate (see `sequential`)."""
        with self._database.read() as connection:
            rollout = find(connection, name).rollout
            return report(
                rollout,
                exposures.traffic(connection, name),
                exposures.evidence(connection, name),
                limit_decisions.made(connection, name),
                Leases(self._database).server(connection, GUARDRAILS),
                shadows.compared(connection, name, rollout.alpha),
                self._database.now(connection),
            )

    def _record(self, tenant: str | None, id: str, metric: str, value: float) -> bool:
        with self._database.log() as connection:
            rollout = find(connection, exposures.rollout_of(connection, tenant, id)).rollout
            return exposures.record(connection, id, metric, metric_of(rollout, metric).check(value))

    def _step(
        self, verb: Verb | Literal["shadow"], name: str, step: Callable[[Rollout], Rollout], why: str, by: str
    ) -> Rollout:
        tenant = self.find(name).tenant
        with self._changes.make(f"rollout.{verb}", tenant=tenant, by=by, why=why) as change:
            old = find(change.connection, name).rollout
            new = step(old)
            if new == old:
                return old
            closed = _replaced(change.connection, old, new)
            put(change.connection, new)
            change.record(old.as_record(), asdict(new.as_record()) | ({"closes": closed} if closed else {}))
            return new


def add(connection: Connection, rollout: Rollout) -> None:
    if connection.execute(select(rollouts.c.name).where(rollouts.c.name == rollout.name)).first() is not None:
        raise EditError(f"there is a rollout {rollout.name!r} already; choose another name")
    now = datetime.now(UTC)
    fixed = _JSON.dump_json(rollout, exclude=_OWN).decode()
    moving = {column: getattr(rollout, column) for column in _COLUMNS} | _texts(rollout)
    connection.execute(insert(rollouts).values(**moving, settings=fixed, created_at=now, changed_at=now))


def put(connection: Connection, rollout: Rollout) -> None:
    """Update the mutable columns of an existing rollout."""
    moved = {column: getattr(rollout, column) for column in _MOVING} | _texts(rollout)
    this = rollouts.c.name == rollout.name
    connection.execute(update(rollouts).where(this).values(**moved, changed_at=datetime.now(UTC)))


def find(connection: Connection, name: str) -> RolloutEntry:
    """Return the rollout; raise `NotFound` with the nearest names if there is none."""
    row = connection.execute(select(rollouts).where(rollouts.c.name == name)).first() if is_label(name) else None
    if row is None:
        names = connection.execute(select(rollouts.c.name)).scalars()
        raise NotFound(f"no rollout {shown(name)}", nearest(name, names))
    return _entry(row)


def newest_first(connection: Connection, tenant: str | None = None) -> list[RolloutEntry]:
    wanted = select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.name)
    if tenant is not None:
        wanted = wanted.where(rollouts.c.tenant == tenant)
    return [_entry(row) for row in connection.execute(wanted)]


def standing(connection: Connection, tenant: str | None = None) -> list[Rollout]:
    """Return the rollouts that are not closed: they decide what is served, or may start to."""
    wanted = select(rollouts).where(rollouts.c.closed.is_(False)).order_by(rollouts.c.name)
    if tenant is not None:
        wanted = wanted.where(rollouts.c.tenant == tenant)
    return [_entry(row).rollout for row in connection.execute(wanted)]


def governing(connection: Connection) -> dict[str, tuple[Rollout, ...]]:
    """Return, by tenant, the rollouts that decide what it is served; omit tenants without a rollout."""
    found: dict[str, tuple[Rollout, ...]] = {}
    for rollout in standing(connection):
        if rollout.governs:
            found[rollout.tenant] = (*found.get(rollout.tenant, ()), rollout)
    return found


def shadowing(connection: Connection) -> dict[str, tuple[Rollout, ...]]:
    """Return, by tenant, the rollouts whose other arm repeats answers; omit tenants without such a rollout."""
    found: dict[str, tuple[Rollout, ...]] = {}
    for rollout in standing(connection):
        if rollout.shadowing:
            found[rollout.tenant] = (*found.get(rollout.tenant, ()), rollout)
    return found


def close(connection: Connection, tenant: str) -> list[str]:
    """Close the tenant's rollouts; return their names. Publications then decide again."""
    return _close(connection, standing(connection, tenant))


def _close(connection: Connection, closed: Iterable[Rollout]) -> list[str]:
    closed = list(closed)
    for rollout in closed:
        put(connection, rollout.ended())
    return [rollout.name for rollout in closed]


def _replaced(connection: Connection, old: Rollout, new: Rollout) -> list[str]:
    """Close the rollouts that a step from `old` to `new` replaces; return their names.

    A first ramp replaces ended rollouts. A promotion replaces them too, and is refused beside an open rollout, whose
    control would no longer be what the tenant is served. A kill after a promotion replaces all others: their control
    is the arm that was killed.
    """
    others = [rollout for rollout in standing(connection, new.tenant) if rollout.name != new.name]
    if new.state == "promoted" and (beside := next((other for other in others if other.open), None)) is not None:
        raise EditError(
            f"cannot promote rollout {new.name!r}: rollout {beside.name!r} ({beside.state}) is beside it; kill it first"
        )
    if (old.state, new.state) == ("promoted", "killed"):
        return _close(connection, others)
    if new.state == "promoted" or (old.state == "created" and new.governs):
        return _close(connection, (other for other in others if not other.open))
    return []


def refuse_running(connection: Connection, tenant: str) -> None:
    """Raise `EditError` while two arms are served: a publication would silently end the comparison."""
    for rollout in standing(connection, tenant):
        if rollout.running:
            raise EditError(
                f"rollout {rollout.name!r} of tenant {tenant!r} is {rollout.state}; promote or kill it first"
            )


def names_in_use(connection: Connection, now: datetime) -> dict[str, str]:
    """Return, by composition, the rollout that serves it or may start to. Arms that ended by `now` are omitted."""
    return {
        arm.name: rollout.name
        for rollout in standing(connection)
        for arm in (rollout.control, rollout.treatment)
        if arm.name is not None and not arm.ended(now)
    }


def _servable(connection: Connection, tenant: str, arm: Arm, override: str, by: str) -> Arm:
    """Return the arm with its expiry, if its composition may be published; the tenant's active composition may."""
    if arm.name is None:
        return arm
    entry = patches.find(connection, arm.name)
    state = tenants.state(connection, tenant, governing(connection))
    for known in (state.served(datetime.now(UTC)), state.published):
        if known.name == arm.name:
            return replace(arm, valid_until=known.valid_until)
    return replace(arm, valid_until=publishable_until(entry, override=override, by=by, valid_until=None))


def _entry(row: Row[Any]) -> RolloutEntry:
    fixed = _FIXED.validate_json(row.settings)
    moving = {column: getattr(row, column) for column in _COLUMNS}
    schedule = None if row.schedule is None else _SCHEDULE.validate_json(row.schedule)
    if schedule is not None and (row.state != "ramping" or row.share != schedule.share):
        schedule = None  # an older version of this package moved the rollout, and knows no schedules
    moving["schedule"] = schedule
    moving["shadow"] = None if row.shadow is None else _SHADOW.validate_json(row.shadow)
    return RolloutEntry(_JSON.validate_python(fixed | moving), row.created_at, row.changed_at)


def _texts(rollout: Rollout) -> dict[str, str | None]:
    """Return the columns that are JSON and change."""
    return {
        "schedule": None if rollout.schedule is None else _SCHEDULE.dump_json(rollout.schedule).decode(),
        "shadow": None if rollout.shadow is None else _SHADOW.dump_json(rollout.shadow).decode(),
    }
