"""Rows of `answers`. Each function runs in its caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from vllm_edit.errors import NotFound
from vllm_edit.names import is_answer_id, shown
from vllm_edit.registry.answer_tables import answers
from vllm_edit.registry.log_rows import add_unknown

PROMPT_LENGTH = 16_000  # characters of a prompt that are kept, if prompts are
_ASKED_LENGTH = 160
_JSON = ("subjects", "groups")


@dataclass(frozen=True)
class AnswerEntry:
    """One answered request.

    asked: the request's model field. key: the id of the API key. patch: the compiled patch or composition that was
    asked for, published or an arm's. adapter: exactly what was in the engine, or, in mode ike, whose demonstrations
    were used; None for the base model alone. arm, rollout: the side that a rollout put the request on. subjects,
    groups: what of a patch with scope subject answered.
    status: None if no answer began. ended: `whole`, `left` (the client went away first), `broken`, or `refused` by the
    router, as what was decided could not be applied; None while it runs. prompt_tokens, completion_tokens: as the
    answer reported them. seconds: of the whole answer.
    generation: of the registry's state that decided. server: which process answered, `host:pid`.
    """

    id: str
    at: datetime
    route: str
    asked: str | None
    tenant: str | None
    key: str | None
    patch: str | None
    adapter: str | None
    mode: str
    arm: str | None
    rollout: str | None
    reason: str
    subjects: tuple[str, ...] | None
    groups: tuple[int, ...] | None
    ike_tokens: int
    status: int | None
    ended: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float | None
    first_token_seconds: float | None
    router_seconds: float
    generation: int | None
    server: str
    prompt: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def add(connection: Connection, found: Iterable[AnswerEntry]) -> None:
    """Enter answers; one whose id is known stays as it is."""
    add_unknown(connection, answers, [_row(one) for one in found])


def find(connection: Connection, id: str) -> AnswerEntry:
    row = connection.execute(select(answers).where(answers.c.id == id)).first() if is_answer_id(id) else None
    if row is None:
        raise NotFound(
            f"no answer {shown(id)} in the log; it may be older than the log keeps, or not written yet by its server"
        )
    return _entry(row)


def newest(connection: Connection, tenant: str | None, limit: int) -> list[AnswerEntry]:
    wanted = select(answers).order_by(answers.c.at.desc(), answers.c.id).limit(limit)
    if tenant is not None:
        wanted = wanted.where(answers.c.tenant == tenant)
    return [_entry(row) for row in connection.execute(wanted)]


def sweep(connection: Connection, older_than: datetime, limit: int) -> int:
    """Delete at most `limit` answers from before then, the oldest first; returns how many."""
    old = select(answers.c.id).where(answers.c.at < older_than).order_by(answers.c.at).limit(limit)
    return connection.execute(delete(answers).where(answers.c.id.in_(old))).rowcount


def _row(one: AnswerEntry) -> dict[str, Any]:
    plain = vars(one) | {"asked": _storable(one.asked, _ASKED_LENGTH), "prompt": _storable(one.prompt, PROMPT_LENGTH)}
    return plain | {column: None if plain[column] is None else json.dumps(plain[column]) for column in _JSON}


def _entry(row: Row[Any]) -> AnswerEntry:
    told = dict(row._mapping)
    for column in _JSON:
        told[column] = None if told[column] is None else tuple(json.loads(told[column]))
    return AnswerEntry(**told)


def _storable(text: str | None, length: int) -> str | None:
    """A client's text as every database can hold it: no half of a surrogate pair, no NUL, not too long."""
    return text and text[:length].encode(errors="replace").decode().replace("\0", "\ufffd")
