"""The registry's log of answers: which patch and server answered each request. Servers add to it in batches.

Functions with a connection run in their caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from vllm_edit.errors import NotFound
from vllm_edit.names import is_answer_id, shown
from vllm_edit.registry import tables, tenants
from vllm_edit.registry.database import Database, add_unknown

PROMPT_LENGTH = 16_000  # stored characters of a prompt, if the operator logs prompts
_ASKED_LENGTH = 160
_JSON = ("subjects", "groups")


@dataclass(frozen=True)
class AnswerEntry:
    """One answered request.

    Attributes:
        asked: The request's `model` field.
        key: The id of the API key.
        patch: The compiled patch or composition: requested, published, or the one of a rollout's arm.
        adapter: The adapter that the engine applied or, in mode ike, the patch whose demonstrations were used; None
            for the base model alone.
        arm, rollout: The rollout that decided the request, and its arm.
        subjects, groups: The subjects and groups of a patch with scope subject that applied to the request.
        status: HTTP status; None if no response began.
        ended: `whole`, `left` (the client disconnected first), `broken`, or `refused` (the router could not apply the
            decision); None while the request runs.
        prompt_tokens, completion_tokens: The usage that the response reported.
        seconds: Duration of the whole response.
        generation: Generation of the registry state that decided the request.
        server: The process that answered, `host:pid`.
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


class Answers:
    """An append-only log: additions leave the generation unchanged and are not audited."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, found: Iterable[AnswerEntry]) -> None:
        """Insert a batch of answers. Answers with a known id stay unchanged, so a batch may be sent twice."""
        with self._database.log() as connection:
            add(connection, found)

    def find(self, id: str) -> AnswerEntry:
        with self._database.read() as connection:
            return find(connection, id)

    def newest(self, tenant: str | None = None, limit: int = 20) -> list[AnswerEntry]:
        """Return the last answers of all tenants or of one, the newest first."""
        with self._database.read() as connection:
            if tenant is not None:
                tenants.require(connection, tenant)
            return newest(connection, tenant, limit)

    def sweep(self, older_than: datetime, limit: int = 5_000) -> int:
        """Delete at most `limit` answers from before `older_than`, and return their number.

        A result below `limit` means that no older answers are left. Each call holds the database's lock only briefly,
        so that publications do not wait while many answers are deleted.
        """
        with self._database.log() as connection:
            return sweep(connection, older_than, limit)


def add(connection: Connection, found: Iterable[AnswerEntry]) -> None:
    """Insert answers; rows with a known id stay unchanged."""
    add_unknown(connection, tables.answers, [_row(entry) for entry in found])


def find(connection: Connection, id: str) -> AnswerEntry:
    wanted = select(tables.answers).where(tables.answers.c.id == id)
    row = connection.execute(wanted).first() if is_answer_id(id) else None
    if row is None:
        raise NotFound(
            f"no answer {shown(id)} in the log; it may be older than the log keeps, or not written yet by its server"
        )
    return _entry(row)


def newest(connection: Connection, tenant: str | None, limit: int) -> list[AnswerEntry]:
    wanted = select(tables.answers).order_by(tables.answers.c.at.desc(), tables.answers.c.id).limit(limit)
    if tenant is not None:
        wanted = wanted.where(tables.answers.c.tenant == tenant)
    return [_entry(row) for row in connection.execute(wanted)]


def sweep(connection: Connection, older_than: datetime, limit: int) -> int:
    """Delete at most `limit` answers from before `older_than`, the oldest first; return their number."""
    old = select(tables.answers.c.id).where(tables.answers.c.at < older_than).order_by(tables.answers.c.at).limit(limit)
    return connection.execute(delete(tables.answers).where(tables.answers.c.id.in_(old))).rowcount


def _row(entry: AnswerEntry) -> dict[str, object]:
    texts = {"asked": storable(entry.asked, _ASKED_LENGTH), "prompt": storable(entry.prompt, PROMPT_LENGTH)}
    plain = vars(entry) | texts
    return plain | {column: None if plain[column] is None else json.dumps(plain[column]) for column in _JSON}


def _entry(row: Row[Any]) -> AnswerEntry:
    fields = dict(row._mapping)
    for column in _JSON:
        fields[column] = None if fields[column] is None else tuple(json.loads(fields[column]))
    return AnswerEntry(**fields)


def storable(text: str | None, length: int) -> str | None:
    """Make a client's text storable in every database: no lone surrogates, no NUL, at most `length` characters."""
    return text and text[:length].encode(errors="replace").decode().replace("\0", "\ufffd")
