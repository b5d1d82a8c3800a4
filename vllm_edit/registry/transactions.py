"""Changes of the registry: one transaction writes the change, the next generation and the audit row."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from getpass import getuser

from sqlalchemy import Connection

from vllm_edit.errors import EditError
from vllm_edit.names import LABEL_LENGTH, REASON_LENGTH, check_note
from vllm_edit.registry import audit
from vllm_edit.registry.audit import Anchor
from vllm_edit.registry.database import Database
from vllm_edit.registry.owner import Owner

logger = logging.getLogger(__name__)


@dataclass
class Change:
    """An open change: write through `connection`, then `record` the state before and after."""

    connection: Connection
    who: str
    why: str
    recorded: tuple[object, object] | None = None

    def record(self, old: object, new: object) -> None:
        """Set the audit row's `old` and `new`: dataclasses, times or JSON values. Without a call, no row is written."""
        self.recorded = (_plain(old), _plain(new))


class Changes:
    """The one way to write the registry's database."""

    def __init__(self, database: Database, anchor: Anchor | None, owner: Owner | None = None) -> None:
        self._database, self._anchor, self._owner = database, anchor, owner

    @contextmanager
    def make(self, what: str, *, tenant: str | None = None, by: str = "", why: str = "") -> Iterator[Change]:
        """Run the block as one transaction, which is rolled back if the block raises.

        Args:
            what: Name of the change in the audit.
            tenant: The tenant that it concerns, if any.
            by: Who makes it; by default the user of this process.
            why: Reason for the audit.
        """
        who = check_note(by or _process_user(), "a name of who does it", LABEL_LENGTH)
        why = check_note(why, "a reason", REASON_LENGTH)
        head = None
        with self._database.change() as connection:
            if self._owner is not None:
                self._owner.enter(connection)
            change = Change(connection, who, why)
            yield change
            if change.recorded is not None:
                old, new = change.recorded
                head = audit.append(connection, who=who, what=what, tenant=tenant, why=why, old=old, new=new)
        if head is None or self._anchor is None:
            return
        try:
            self._anchor.advance(head)
        except (OSError, EditError) as error:  # the change is committed, so the call must not fail
            logger.error("row %d of the audit is committed, but its anchor is not written: %s", head.number, error)


def _plain(value: object) -> object:
    """Dataclasses and times as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _process_user() -> str:
    """User of this process, for the audit; in a container the user may have no name."""
    try:
        return getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"
