"""The audit: one row per change of the registry, chained by digests, so that tampering is detected.

    digest = SHA-256 of the canonical JSON of the row's other fields, including the digest of the previous row

A writer of the database could recompute the digests of all rows. Therefore the number and digest of the newest row (the
head) are also stored in a file of the store, outside the database (`Anchor`). `verify` compares the two and reports the
first wrong row:

    changed             its content does not match its digest
    removed             its number is missing; at the end of the chain: the anchor has a higher number
    reordered           its digest matches its content under another number
    rewritten together with all following rows     the digest of the anchored row differs from the anchor

Not detected: rows that were removed before the anchor covered them (if a writer is killed between its commit and the
anchor's file, the next change anchors both rows); and an attacker who writes both the database and the anchor.

Functions with a connection run in their caller's transaction; `Database.change` serializes the writers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Connection, insert, select

from vllm_edit.digest import canonical
from vllm_edit.errors import Corrupt
from vllm_edit.files import Files
from vllm_edit.registry import tables

ANCHOR = "audit.json"

BEGINNING = "0" * 64
"""The previous digest of the first row."""


@dataclass(frozen=True)
class AuditEntry:
    """One change: actor, action, tenant, reason, and the state before and after. `old` and `new` are canonical JSON."""

    number: int
    at: str
    who: str
    what: str
    tenant: str | None
    why: str
    old: str
    new: str
    previous: str
    digest: str

    def as_record(self) -> AuditRecord:
        return AuditRecord(**asdict(self) | {"old": _parsed(self.old), "new": _parsed(self.new)})

    @property
    def summary(self) -> str:
        """The state after the change, in a few words."""
        return _brief(_parsed(self.new))


@dataclass(frozen=True)
class AuditRecord:
    """An `AuditEntry` with `old` and `new` parsed; text that is not valid JSON (after tampering) stays text."""

    number: int
    at: str
    who: str
    what: str
    tenant: str | None
    why: str
    old: JsonValue
    new: JsonValue
    previous: str
    digest: str


@dataclass(frozen=True)
class Head:
    """The newest row; number 0 before the first."""

    number: int
    digest: str


EMPTY = Head(0, BEGINNING)


def entry(
    after: Head, *, at: str, who: str, what: str, tenant: str | None, why: str, old: object, new: object
) -> AuditEntry:
    """The row that follows `after`."""
    fields: dict[str, Any] = {
        "number": after.number + 1,
        "at": at,
        "who": who,
        "what": what,
        "tenant": tenant,
        "why": why,
        "old": canonical(old).decode(),
        "new": canonical(new).decode(),
        "previous": after.digest,
    }
    return AuditEntry(**fields, digest=_digest(fields))


def append(
    connection: Connection, *, who: str, what: str, tenant: str | None, why: str, old: object, new: object
) -> Head:
    """Add the audit row of the current transaction's change; return the chain's new head."""
    at = datetime.now(UTC).isoformat(timespec="microseconds")
    row = entry(_head(connection), at=at, who=who, what=what, tenant=tenant, why=why, old=old, new=new)
    connection.execute(insert(tables.audit).values(**vars(row)))
    return Head(row.number, row.digest)


def in_order(
    connection: Connection, tenant: str | None = None, newest: int | None = None, what: str = ""
) -> list[AuditEntry]:
    """Return the rows, oldest first: all, those of `tenant`, or the last `newest` of them.

    Args:
        connection: the connection.
        tenant: only rows of this tenant.
        newest: only the last so many rows.
        what: only changes whose names begin so.
    """
    number = tables.audit.c.number
    wanted = select(tables.audit).order_by(number.desc()).limit(newest)
    if tenant is not None:
        wanted = wanted.where(tables.audit.c.tenant == tenant)
    if what:
        wanted = wanted.where(tables.audit.c.what.startswith(what, autoescape=True))
    found = [AuditEntry(**row._mapping) for row in connection.execute(wanted)]
    return found[::-1]


class Anchor:
    """The head of the chain, in a file of the store. It only moves forward, in whichever order processes write it.

    Write it after each commit, never before: an uncommitted head would look like a removed row.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    def read(self) -> Head | None:
        """Return the stored head; None if there is no file.

        Raises:
            Corrupt: the file holds no head.
        """
        try:
            data = self._files.read(ANCHOR)
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(data)
            head = Head(number=fields["number"], digest=fields["digest"])
            intact = isinstance(head.number, int) and re.fullmatch("[0-9a-f]{64}", head.digest) is not None
        except (ValueError, KeyError, TypeError, RecursionError):
            intact = False
        if not intact:
            raise Corrupt(f"{ANCHOR} holds no head of the audit; restore it from a copy")
        return head

    def advance(self, head: Head) -> None:
        """Write `head`, fsynced, unless the file already holds a later head."""
        with self._files.locked(ANCHOR):
            known = self.read()
            if known is None or known.number < head.number:
                self._files.write(ANCHOR, canonical(asdict(head)))


@dataclass(frozen=True)
class Verified:
    """Result of `verify`.

    Attributes:
        rows: Number of rows.
        not_anchored: Number of newest rows that the anchor does not cover. Their writers were killed, are still
            running, or could not write the file (and logged that). This is not a problem of the chain.
        problems: One line per problem.
    """

    rows: int
    not_anchored: int
    problems: tuple[str, ...]


def verify(rows: Sequence[AuditEntry], anchored: Head | None) -> Verified:
    """Find every problem of a chain.

    Args:
        rows: All rows, in the order of their numbers.
        anchored: The head that is stored outside the database; None if there is none.
    """
    not_anchored = sum(row.number > (anchored or EMPTY).number for row in rows)
    return Verified(len(rows), not_anchored, tuple(_problems(rows, anchored)))


def _head(connection: Connection) -> Head:
    a = tables.audit.c
    row = connection.execute(select(a.number, a.digest).order_by(a.number.desc()).limit(1)).first()
    return EMPTY if row is None else Head(row.number, row.digest)


def _problems(rows: Sequence[AuditEntry], anchored: Head | None) -> list[str]:
    problems = []
    by_number = {row.number: row for row in rows}
    head = EMPTY
    wrong = {row.number for row in rows if _digest_of(row, row.number) != row.digest}
    missing = _missing(by_number, rows[-1].number if rows else 0)
    for row in rows:
        if row.number != head.number + 1:
            problems.append(f"{_rows(head.number + 1, row.number - 1)} removed")
        if row.number in wrong:
            place = next((n for n in sorted(wrong | missing) if _digest_of(row, n) == row.digest), None)
            problem = f"reordered: it was row {place}" if place else "changed: its content does not match its digest"
            problems.append(f"row {row.number} ({row.at}, {row.what}) was {problem}")
        elif row.number == head.number + 1 and row.previous != head.digest and head.number not in wrong:
            problems.append(f"row {row.number} ({row.at}, {row.what}) does not follow row {head.number}")
        head = Head(row.number, row.digest)
    return problems + _against(anchored, by_number, head)


def _against(anchored: Head | None, by_number: Mapping[int, AuditEntry], head: Head) -> list[str]:
    if anchored is None:
        problem = "the anchor of the audit is missing: restore it, rows may have been removed at the end"
        return [problem] if by_number else []
    if anchored.number > head.number:
        return [f"{_rows(head.number + 1, anchored.number)} removed at the end: the anchor has row {anchored.number}"]
    row = by_number.get(anchored.number) if anchored.number else EMPTY
    if row is not None and row.digest != anchored.digest:
        return [
            f"row {anchored.number} differs from the anchored row: rows up to it were rewritten with their digests, "
            "or the anchor was changed"
        ]
    return []


def _missing(by_number: Mapping[int, AuditEntry], last: int) -> set[int]:
    return set(range(1, last + 1)).difference(by_number)


def _rows(first: int, last: int) -> str:
    return f"row {first} was" if first == last else f"rows {first} to {last} were"


def _digest_of(row: AuditEntry, number: int) -> str:
    """The digest of the row's content under the number `number`; empty if a value has a wrong type."""
    try:
        return _digest({key: value for key, value in asdict(row).items() if key != "digest"} | {"number": number})
    except (TypeError, ValueError):
        return ""


def _digest(fields: Mapping[str, object]) -> str:
    """Digest of every field except `digest`. All 256 bits, because a forger can choose the content of rows."""
    return hashlib.sha256(canonical(fields)).hexdigest()


def _brief(new: JsonValue) -> str:
    """Short summary of a change's new state, for display."""
    if not isinstance(new, dict):
        return "" if new is None else str(new)
    parts = [f"{key} {new[key]}" for key in ("name", "active", "status", "id", "valid_until") if new.get(key)]
    if "treatment" in new:  # a rollout
        share = new.get("share")
        shown = f"{share:g} %" if isinstance(share, (int, float)) else str(share)  # text: tampered with
        parts += [f"{new.get('state')} at {shown}", f"treatment {new['treatment']}"]
    if "active" in new and new["active"] is None:
        parts.append("base")
    return ", ".join(parts)


def _parsed(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value
