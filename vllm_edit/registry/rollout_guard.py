"""Guards rollouts: tests their limits, acts where one is exceeded, and follows their schedules.

One server at a time does it, the owner of the lease `GUARDRAILS`. An action and the check of the lease are one
transaction, and a limit has at most one decision, so no action is ever made twice: neither by two servers nor by one
that is killed and starts again. A person's step needs no lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vllm_edit.names import LABEL_LENGTH, REASON_LENGTH
from vllm_edit.registry import exposures, limit_decisions, rollouts
from vllm_edit.registry.database import Database
from vllm_edit.registry.leases import GUARDRAILS, LEASE_S, Leases
from vllm_edit.registry.transactions import Changes
from vllm_edit.rollout.decided import Decision
from vllm_edit.rollout.guardrails import LimitResult, judge, strictest
from vllm_edit.rollout.limit import Action
from vllm_edit.rollout.rollout import Rollout


@dataclass(frozen=True)
class Watch:
    """Who guards. owner: an id that no other process has. server: its name for people, `host:pid`."""

    owner: str
    server: str


class RolloutGuard:
    """The guard of a registry's rollouts."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes
        self._leases = Leases(database)

    def hold(self, watch: Watch, seconds: float = LEASE_S) -> bool:
        """Take or renew the lease; return False if another server guards."""
        return self._leases.take(GUARDRAILS, watch.owner, watch.server, seconds)

    def release(self, watch: Watch) -> None:
        """Let another server guard at once."""
        self._leases.release(GUARDRAILS, watch.owner)

    def mark(self) -> tuple[int, ...]:
        """Return numbers that change whenever there is something new to test limits on."""
        with self._database.read() as connection:
            return exposures.mark(connection)

    def test(self, name: str, watch: Watch) -> tuple[Decision, ...]:
        """Test the limits of a rollout, and act on those that are exceeded and have not acted before.

        Returns:
            The new decisions.

        Raises:
            LeaseLost: the lease is not this server's; nothing was done.
            NotFound: there is no such rollout.
        """
        with self._database.read() as connection:
            rollout = rollouts.find(connection, name).rollout
            known = {decision.result.limit for decision in limit_decisions.made(connection, name)}
            waiting = [limit for limit in rollout.limits if str(limit) not in known]
            if not rollout.running or not waiting:
                return ()
            evidence = exposures.evidence(connection, name)
        results = [result for result in judge(rollout, evidence) if result.exceeded and result.limit not in known]
        return self._act(rollout, results, watch) if results else ()

    def advance(self, name: str, watch: Watch) -> Rollout | None:
        """Take the next step of the rollout's schedule if it is due; return the rollout if it moved.

        Raises:
            LeaseLost: the lease is not this server's; nothing was done.
        """
        with self._database.read() as connection:
            rollout, now = rollouts.find(connection, name).rollout, self._database.now(connection)
        if rollout.advanced(now) == rollout:
            return None
        why = f"schedule {rollout.schedule}"[:REASON_LENGTH]
        with self._changes.make("rollout.ramp", tenant=rollout.tenant, by=_by("schedule", watch), why=why) as change:
            self._leases.require(change.connection, GUARDRAILS, watch.owner)
            old = rollouts.find(change.connection, name).rollout
            new = old.advanced(now)
            if new == old:  # a person was faster
                return None
            rollouts.put(change.connection, new)
            change.record(old.as_record(), new.as_record())
            return new

    def add_canary(self, name: str, probe: str, *, changed: bool, server: str) -> None:
        """Log whether the treatment's answer to a locality probe differs from the base's."""
        with self._database.log() as connection:
            exposures.add_canary(connection, name, probe, changed=changed, server=server)

    def _act(self, rollout: Rollout, results: Sequence[LimitResult], watch: Watch) -> tuple[Decision, ...]:
        action = strictest(results)
        why = "; ".join(f"limit {result.limit}: {result.summary}" for result in results)[:REASON_LENGTH]
        by = _by("limit", watch)
        with self._changes.make(f"rollout.{action}", tenant=rollout.tenant, by=by, why=why) as change:
            self._leases.require(change.connection, GUARDRAILS, watch.owner)
            old = rollouts.find(change.connection, rollout.name).rollout
            known = {decision.result.limit for decision in limit_decisions.made(change.connection, rollout.name)}
            new_results = [result for result in results if result.limit not in known]
            if not old.running or not new_results:  # a person was faster
                return ()
            now = self._database.now(change.connection)
            decisions = tuple(Decision(result, now, watch.server) for result in new_results)
            new = _moved(old, action, new_results[0].limit)
            rollouts.put(change.connection, new)
            limit_decisions.add(change.connection, rollout.name, decisions)
            change.record(old.as_record(), asdict(new.as_record()) | {"decisions": [asdict(d) for d in decisions]})
            return decisions


def _moved(rollout: Rollout, action: Action, limit: str) -> Rollout:
    """Return the rollout after the action; a paused rollout that is to pause stays as it is."""
    match action:
        case "kill":
            return rollout.killed()
        case "pause":
            return rollout.paused() if rollout.state == "ramping" else rollout
        case "warn":
            return rollout.held(limit)


def _by(what: str, watch: Watch) -> str:
    return f"{what} at {watch.server}"[:LABEL_LENGTH]
