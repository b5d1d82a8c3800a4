"""Exposures (requests that rollouts decided), their outcomes, and what else limits are tested on.

Each function runs in its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import Connection, func, insert, select

from vllm_edit.errors import EditError
from vllm_edit.names import is_answer_id, shown
from vllm_edit.registry.database import add_unknown
from vllm_edit.registry.tables import canaries, exposures, first_answers, outcomes
from vllm_edit.rollout.arm import SIDES, Side
from vllm_edit.rollout.guardrails import Evidence
from vllm_edit.rollout.outcomes import Exposure, FirstAnswer, Observed, Traffic, UnknownAnswer

_RECENT = 10_000  # numbers in which a row that is committed late is noticed: far more than open transactions hold
_LATENCIES = 10_000  # an arm's newest latencies, from which its quantiles are computed


def expose(connection: Connection, found: Iterable[Exposure]) -> None:
    """Insert requests that rollouts decided, and each unit's first answer; rows that are known stay unchanged."""
    found = list(found)
    firsts = [
        {
            "rollout": exposure.assignment.rollout,
            "unit": exposure.assignment.unit,
            "side": exposure.assignment.side,
            "failed": exposure.failed,
            "cut": exposure.cut,
            "seconds": exposure.seconds,
        }
        for exposure in found
        if exposure.assignment.compared
    ]
    rows = [
        {
            "id": exposure.id,
            "rollout": exposure.assignment.rollout,
            "tenant": exposure.tenant,
            "side": exposure.assignment.side,
            "reason": exposure.assignment.reason,
            "unit": exposure.assignment.unit,
            "at": exposure.at,
            "failed": exposure.failed,
            "prompt_tokens": exposure.prompt_tokens,
            "completion_tokens": exposure.completion_tokens,
            "seconds": exposure.seconds,
        }
        for exposure in found
    ]
    add_unknown(connection, exposures, rows)
    # Servers that insert the same units wait for each other: one order for all, or they would wait in a circle.
    firsts.sort(key=lambda row: (str(row["rollout"]), str(row["unit"])))
    add_unknown(connection, first_answers, firsts, unique=("rollout", "unit"))


def rollout_of(connection: Connection, tenant: str | None, id: str) -> str:
    """Return the name of the rollout that decided the answer `id`.

    Args:
        tenant: The tenant that the answer must belong to; None accepts every tenant's.
        id: The answer's id.

    Raises:
        UnknownAnswer: no rollout decided an answer of this id for this tenant, or the answer is another tenant's.
    """
    e = exposures.c
    known = select(e.rollout).where(e.id == id)
    if tenant is not None:
        known = known.where(e.tenant == tenant)
    rollout: str | None = connection.execute(known).scalar() if is_answer_id(id) else None
    if rollout is None:
        raise UnknownAnswer(f"no rollout decided an answer {shown(id)}")
    return rollout


def record(connection: Connection, id: str, metric: str, value: float) -> bool:
    """Insert an outcome of the answer `id`.

    Returns:
        False if the same value was recorded before.

    Raises:
        EditError: a different value was recorded before.
    """
    o = outcomes.c
    before = connection.execute(select(o.value).where(o.exposure == id, o.metric == metric)).scalar()
    if before is None:
        row = {"exposure": id, "metric": metric, "value": value, "at": datetime.now(UTC)}
        connection.execute(insert(outcomes).values(**row))
    elif before != value:
        raise EditError(f"{metric} of answer {id} is {before:g} already; an outcome is recorded once")
    return before is None


def traffic(connection: Connection, rollout: str) -> dict[Side, Traffic]:
    """Return each arm's traffic, counting the requests that are compared."""
    return {side: _traffic(connection, rollout, side) for side in SIDES}


def first_outcomes(connection: Connection, rollout: str) -> dict[str, list[Observed]]:
    """Return, by metric, the first outcome of each unit, in the order of arrival."""
    e, o = exposures.c, outcomes.c
    within = select(o.number, o.metric, o.value, e.side, e.unit).join_from(outcomes, exposures)
    within = within.where(e.rollout == rollout, e.unit.is_not(None))
    every = within.subquery().c
    first = select(func.min(every.number).label("number"), func.count().label("count"))
    firsts = first.group_by(every.metric, every.unit).subquery()
    rows = select(every.metric, every.value, every.side, firsts.c.count)
    rows = rows.where(every.number == firsts.c.number).order_by(every.number)
    found: dict[str, list[Observed]] = {}
    for metric, value, side, count in connection.execute(rows):
        found.setdefault(metric, []).append(Observed(side, value, count))
    return found


def evidence(connection: Connection, rollout: str) -> Evidence:
    """Return everything that the rollout's limits and metrics are tested on, in the order of arrival."""
    f, c = first_answers.c, canaries.c
    answers = select(f.side, f.failed, f.cut, f.seconds).where(f.rollout == rollout).order_by(f.number)
    changed = select(c.changed).where(c.rollout == rollout).order_by(c.number)
    return Evidence(
        [FirstAnswer(*row) for row in connection.execute(answers)],
        first_outcomes(connection, rollout),
        connection.execute(changed).scalars().all(),
    )


def mark(connection: Connection) -> tuple[int, ...]:
    """Return numbers that change whenever the `evidence` of any rollout changes, at the cost of six look-ups.

    On PostgreSQL a row may be committed after a row with a higher number. So each table's last rows are counted too.
    """
    found = []
    for number in (first_answers.c.number, canaries.c.number, outcomes.c.number):
        last = connection.execute(select(func.max(number))).scalar() or 0
        recent = select(func.count()).where(number > last - _RECENT)
        found += [last, connection.execute(recent).scalar_one()]
    return tuple(found)


def add_canary(connection: Connection, rollout: str, probe: str, *, changed: bool, server: str) -> None:
    """Insert the result of a locality probe that `server` asked."""
    row = {"rollout": rollout, "probe": probe, "changed": changed, "at": datetime.now(UTC), "server": server}
    connection.execute(insert(canaries).values(**row))


def _traffic(connection: Connection, rollout: str, side: Side) -> Traffic:
    e = exposures.c
    compared = (e.rollout == rollout) & (e.side == side) & e.unit.is_not(None)
    totals = select(
        func.count(),
        func.count(e.unit.distinct()),
        func.count().filter(e.failed),
        func.coalesce(func.sum(e.prompt_tokens), 0),
        func.coalesce(func.sum(e.completion_tokens), 0),
    ).where(compared)
    requests, units, failed, prompt_tokens, completion_tokens = connection.execute(totals).one()
    newest = select(e.seconds).where(compared, e.seconds.is_not(None)).order_by(e.at.desc()).limit(_LATENCIES)
    seconds = connection.execute(newest).scalars().all()
    return Traffic(requests, units, failed, int(prompt_tokens), int(completion_tokens), seconds)
