"""Rollouts in the registry: creation, state changes, exposures and outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from vllm_edit.errors import EditError
from vllm_edit.registry import outcome_rows, patch_rows, rollout_rows, tenant_rows
from vllm_edit.registry.changes import Changes
from vllm_edit.registry.database import Database
from vllm_edit.registry.publishable import publishable_until
from vllm_edit.registry.rollout_rows import RolloutEntry
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.outcomes import Exposure
from vllm_edit.rollout.report import RolloutReport, report
from vllm_edit.rollout.rollout import Rollout, Verb


class Rollouts:
    """A registry's rollouts. Every step is an audited change; exposures and outcomes are a log."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes

    def create(self, rollout: Rollout, *, override: str = "", why: str = "", by: str = "") -> Rollout:
        """Insert a rollout, and return it with the expiry of its arms. It serves nobody before its first ramp.

        Args:
            rollout: The rollout.
            override: Reason to serve an arm that its gate did not accept; requires `by`.
            why: Reason for the audit.
            by: Who creates it.

        Raises:
            EditError: the name is taken, the tenant has an open rollout, or an arm may not be served.
        """
        with self._changes.make("rollout.create", tenant=rollout.tenant, by=by, why=why or override) as change:
            connection = change.connection
            tenant_rows.require(connection, rollout.tenant)
            for other in rollout_rows.standing(connection, rollout.tenant):
                if other.open:
                    raise EditError(
                        f"tenant {rollout.tenant!r} has rollout {other.name!r} ({other.state}) already; promote or "
                        "kill it first"
                    )
            arms = {
                side: _servable(connection, rollout.tenant, arm, override, by)
                for side, arm in (("control", rollout.control), ("treatment", rollout.treatment))
            }
            made = replace(rollout, control=arms["control"], treatment=arms["treatment"])
            rollout_rows.add(connection, made)
            change.record(None, made.as_record() | ({"override": override} if override else {}))
            return made

    def ramp(self, name: str, percent: float, *, why: str = "", by: str = "") -> Rollout:
        """Let `percent` of the sticky keys take part. The first ramp replaces the tenant's previous, ended rollout."""
        return self._step("ramp", name, lambda rollout: rollout.ramped(percent), why, by)

    def pause(self, name: str, *, why: str = "", by: str = "") -> Rollout:
        return self._step("pause", name, Rollout.paused, why, by)

    def kill(self, name: str, *, why: str = "", by: str = "") -> Rollout:
        """Serve control to everyone. Closes a rollout created while this one was promoted: its control differs."""
        return self._step("kill", name, Rollout.killed, why, by)

    def promote(self, name: str, *, why: str = "", by: str = "") -> Rollout:
        return self._step("promote", name, Rollout.promoted, why, by)

    def find(self, name: str) -> Rollout:
        with self._database.read() as connection:
            return rollout_rows.find(connection, name).rollout

    def newest_first(self, tenant: str | None = None) -> list[RolloutEntry]:
        """Return all rollouts or a tenant's, the newest first."""
        with self._database.read() as connection:
            if tenant is not None:
                tenant_rows.require(connection, tenant)
            return rollout_rows.newest_first(connection, tenant)

    def expose(self, found: Iterable[Exposure]) -> None:
        """Log a batch of requests that rollouts decided. Known ids stay unchanged, so a batch may be repeated."""
        with self._database.log() as connection:
            outcome_rows.expose(connection, found)

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
            rollout = rollout_rows.find(connection, name).rollout
            return report(
                rollout, outcome_rows.traffic(connection, name), outcome_rows.first_outcomes(connection, name)
            )

    def _record(self, tenant: str | None, id: str, metric: str, value: float) -> bool:
        with self._database.log() as connection:
            return outcome_rows.record(connection, tenant, id, metric, value)

    def _step(self, verb: Verb, name: str, step: Callable[[Rollout], Rollout], why: str, by: str) -> Rollout:
        tenant = self.find(name).tenant
        with self._changes.make(f"rollout.{verb}", tenant=tenant, by=by, why=why) as change:
            old = rollout_rows.find(change.connection, name).rollout
            new = step(old)
            if new == old:
                return old
            replaces = new.governs and (old.state == "created" or new.state == "killed")
            closed = rollout_rows.close(change.connection, tenant, but=name) if replaces else []
            rollout_rows.put(change.connection, new)
            change.record(old.as_record(), new.as_record() | ({"closes": closed} if closed else {}))
            return new


def _servable(connection: Connection, tenant: str, arm: Arm, override: str, by: str) -> Arm:
    """Return the arm with its expiry, if its composition may be published; the tenant's active composition may."""
    if arm.name is None:
        return arm
    entry = patch_rows.find(connection, arm.name)
    state = tenant_rows.state(connection, tenant)
    for known in (state.served(datetime.now(UTC)), state.published):
        if known.name == arm.name:
            return replace(arm, valid_until=known.valid_until)
    return replace(arm, valid_until=publishable_until(entry, override=override, by=by, valid_until=None))
