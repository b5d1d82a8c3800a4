"""The registry's log of shadows: comparisons of clients' answers with those of the other arm, and how many were lost.

Functions with a connection run in their caller's transaction.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from vllm_edit.registry.answers import storable
from vllm_edit.registry.database import Database
from vllm_edit.registry.tables import shadow_losses, shadows
from vllm_edit.rollout.shadow import MOST_COMPARED
from vllm_edit.rollout.shadow_report import ShadowExample, ShadowPair, ShadowReport, shadow_report

TEXT_LENGTH = 4_000  # stored characters of a text
_EXAMPLES = 5
_PAIR = tuple(part.name for part in fields(ShadowPair) if part.name not in ("text", "shadow_text"))


class Shadows:
    """An append-only log: additions leave the generation unchanged and are not audited."""

    def __init__(self, database: Database, most: int = MOST_COMPARED) -> None:
        self._database, self._most = database, most

    def add(self, rollout: str, pair: ShadowPair, server: str) -> bool:
        """Insert a comparison that `server` made, unless the rollout has enough of them.

        Returns:
            True while the rollout takes further comparisons.
        """
        with self._database.log() as connection:
            count = select(func.count()).select_from(shadows).where(shadows.c.rollout == rollout)
            known = connection.execute(count).scalar_one()
            if known >= self._most:
                return False
            texts = {"text": storable(pair.text, TEXT_LENGTH), "shadow_text": storable(pair.shadow_text, TEXT_LENGTH)}
            row = {**vars(pair), **texts, "rollout": rollout, "at": datetime.now(UTC), "server": server}
            connection.execute(insert(shadows).values(**row))
            return known + 1 < self._most

    def lose(self, rollout: str, owner: str, dropped: int, failed: int) -> None:
        """Set how many drawn answers the process `owner` has lost so far; a write may be repeated."""
        with self._database.log() as connection:
            dialect = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            lost = {"dropped": dropped, "failed": failed}
            row = dialect(shadow_losses).values(rollout=rollout, owner=owner, **lost)
            connection.execute(row.on_conflict_do_update(index_elements=["rollout", "owner"], set_=lost))

    def forget(self, older_than: datetime, limit: int = 5_000) -> int:
        """Delete the texts of at most `limit` comparisons from before `older_than`, and return their number.

        Whether the answers were the same stays.
        """
        s = shadows.c
        old = select(s.number).where(s.at < older_than, s.text.is_not(None)).limit(limit)
        with self._database.log() as connection:
            forgotten = update(shadows).where(s.number.in_(old)).values(text=None, shadow_text=None)
            return connection.execute(forgotten).rowcount


def compared(connection: Connection, rollout: str, alpha: float) -> ShadowReport | None:
    """Return the report on the rollout's shadow; None if no answer was ever drawn."""
    s, lost = shadows.c, shadow_losses.c
    columns = [s[name] for name in _PAIR]
    found = connection.execute(select(*columns).where(s.rollout == rollout).order_by(s.number).limit(MOST_COMPARED))
    pairs = [ShadowPair(**row._mapping) for row in found]
    totals = select(func.coalesce(func.sum(lost.dropped), 0), func.coalesce(func.sum(lost.failed), 0))
    dropped, failed = connection.execute(totals.where(lost.rollout == rollout)).one()
    if not (pairs or dropped or failed):
        return None
    return shadow_report(pairs, int(dropped), int(failed), _examples(connection, rollout), alpha)


def _examples(connection: Connection, rollout: str) -> list[ShadowExample]:
    s = shadows.c
    wanted = select(s.answer, s.at, s.side, s.text, s.shadow_text)
    different = wanted.where(s.rollout == rollout, s.same.is_(False), s.text.is_not(None), s.shadow_text.is_not(None))
    return [
        ShadowExample(answer, at, side, *((text, other) if side == "control" else (other, text)))
        for answer, at, side, text, other in connection.execute(different.order_by(s.number.desc()).limit(_EXAMPLES))
    ]
