"""Decisions of rollouts' limits: each limit that was exceeded, once. Functions run in their caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter
from sqlalchemy import Connection, insert, select

from vllm_edit.registry.tables import limit_decisions
from vllm_edit.rollout.decided import Decision
from vllm_edit.rollout.guardrails import LimitResult

_JSON = TypeAdapter(LimitResult)


def made(connection: Connection, rollout: str) -> list[Decision]:
    """Return the rollout's decisions, the oldest first."""
    d = limit_decisions.c
    wanted = select(d.result, d.at, d.server).where(d.rollout == rollout).order_by(d.at, d.limit)
    return [Decision(_JSON.validate_json(result), at, server) for result, at, server in connection.execute(wanted)]


def add(connection: Connection, rollout: str, decisions: Sequence[Decision]) -> None:
    """Insert decisions of limits that have none yet."""
    rows = [
        {
            "rollout": rollout,
            "limit": decision.result.limit,
            "result": _JSON.dump_json(decision.result).decode(),
            "at": decision.at,
            "server": decision.server,
        }
        for decision in decisions
    ]
    connection.execute(insert(limit_decisions), rows)
