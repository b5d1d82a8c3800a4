"""The audit: every change of the registry as one row, chained by digests, so that nothing is undone unseen.

    digest = SHA-256 of the canonical JSON of the row's other fields, the digest of the row before among them

Whoever can write the database could chain all rows anew. So the newest row's number and digest, the head, are also kept
outside it (`anchor`). `verify` holds the two against each other and names the first row that is wrong:

    changed             its content does not have its digest
    removed             its number is missing; at the end of the chain: the anchor knows of more rows
    reordered           its digest is that of its content under another number
    rewritten with all that follows     the anchored row has another digest than the anchor

Not found: rows written after the anchor was, and then removed (a writer is killed between its commit and the anchor's
file: the next change anchors both); and whoever writes the database and the anchor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_edit.digest import canonical

BEGINNING = "0" * 64
"""What stands for the digest of the row before the first."""


@dataclass(frozen=True)
class AuditEntry:
    """One change: who did what to whom, why, and what it replaced. `old` and `new` are canonical JSON."""

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

    def as_dict(self) -> dict[str, Any]:
        """With `old` and `new` as what they say; one that was tampered with until it is no JSON stays text."""
        return asdict(self) | {"old": _said(self.old), "new": _said(self.new)}

    @property
    def summary(self) -> str:
        """What holds since then, in some words."""
        return _brief(_said(self.new))


@dataclass(frozen=True)
class Head:
    """The newest row; number 0 before the first."""

    number: int
    digest: str


EMPTY = Head(0, BEGINNING)


def entry(after: Head, *, at: str, who: str, what: str, tenant: str | None, why: str, old: Any, new: Any) -> AuditEntry:
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


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    not_anchored: how many of the newest rows the anchor does not cover. Their writers were killed, or run right now, or
    could not write the file (and logged it): no problem of the chain.
    """

    rows: int
    not_anchored: int
    problems: tuple[str, ...]


def verify(rows: Sequence[AuditEntry], anchored: Head | None) -> Verified:
    """Every problem of a chain, one line each.

    rows: in the order of their numbers. anchored: the head that is kept outside the database, None if there is none.
    """
    not_anchored = sum(row.number > (anchored or EMPTY).number for row in rows)
    return Verified(len(rows), not_anchored, tuple(_problems(rows, anchored)))


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
            told = f"reordered: it was row {place}" if place else "changed: its content does not have its digest"
            problems.append(f"row {row.number} ({row.at}, {row.what}) was {told}")
        elif row.number == head.number + 1 and row.previous != head.digest and head.number not in wrong:
            problems.append(f"row {row.number} ({row.at}, {row.what}) does not follow row {head.number}")
        head = Head(row.number, row.digest)
    return problems + _against(anchored, by_number, head)


def _against(anchored: Head | None, by_number: Mapping[int, AuditEntry], head: Head) -> list[str]:
    if anchored is None:
        told = "the anchor of the audit is missing: restore it, rows may have been cut at the end"
        return [told] if by_number else []
    if anchored.number > head.number:
        return [f"{_rows(head.number + 1, anchored.number)} removed at the end: the anchor knows of {anchored.number}"]
    row = by_number.get(anchored.number) if anchored.number else EMPTY
    if row is not None and row.digest != anchored.digest:
        return [
            f"row {anchored.number} is not the one that was anchored: rows up to it were rewritten with their digests, "
            "or the anchor was changed"
        ]
    return []


def _missing(by_number: Mapping[int, AuditEntry], last: int) -> set[int]:
    return set(range(1, last + 1)).difference(by_number)


def _rows(first: int, last: int) -> str:
    return f"row {first} was" if first == last else f"rows {first} to {last} were"


def _digest_of(row: AuditEntry, number: int) -> str:
    """The digest of the row's content if it stood at `number`; empty where somebody wrote what is no text."""
    try:
        return _digest({key: value for key, value in asdict(row).items() if key != "digest"} | {"number": number})
    except (TypeError, ValueError):
        return ""


def _digest(fields: Mapping[str, Any]) -> str:
    """Of every field but the digest. All 256 bits: whoever forges rows may choose their content."""
    return hashlib.sha256(canonical(fields)).hexdigest()


def _brief(new: Any) -> str:
    """Names and ends of what a change made, where it is one of ours."""
    if not isinstance(new, dict):
        return "" if new is None else str(new)
    told = [f"{key} {new[key]}" for key in ("name", "active", "status", "id", "valid_until") if new.get(key)]
    if "active" in new and new["active"] is None:
        told.append("base")
    return ", ".join(told)


def _said(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
