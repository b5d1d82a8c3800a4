"""Changes of the registry: one transaction with what changes, its step of the generation and its row of the audit."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from getpass import getuser
from typing import Any

from sqlalchemy import Connection

from vllm_edit.errors import EditError
from vllm_edit.names import LABEL_LENGTH, REASON_LENGTH, check_note
from vllm_edit.registry import audit_rows
from vllm_edit.registry.anchor import Anchor
from vllm_edit.registry.database import Database
from vllm_edit.registry.owner import Owner

logger = logging.getLogger(__name__)


@dataclass
class Change:
    """A change under way: write through `connection`, and tell what it replaced by what."""

    connection: Connection
    who: str
    why: str
    told: tuple[Any, Any] | None = None

    def tells(self, old: Any, new: Any) -> None:
        """What the audit keeps: dataclasses, times or JSON-able. A change that tells nothing has changed nothing."""
        self.told = (_plain(old), _plain(new))


class Changes:
    """The one way to write the registry's database."""

    def __init__(self, database: Database, anchor: Anchor | None, owner: Owner | None = None) -> None:
        self._database, self._anchor, self._owner = database, anchor, owner

    @contextmanager
    def make(self, what: str, *, tenant: str | None = None, by: str = "", why: str = "") -> Iterator[Change]:
        """One change called `what`, undone if the block raises. by: who does it; default is who runs this process."""
        who = check_note(by or _process_user(), "a name of who does it", LABEL_LENGTH)
        check_note(why, "a reason", REASON_LENGTH)
        head = None
        with self._database.change() as connection:
            if self._owner is not None:
                self._owner.enter(connection)
            change = Change(connection, who, why)
            yield change
            if change.told is not None:
                old, new = change.told
                head = audit_rows.append(connection, who=who, what=what, tenant=tenant, why=why, old=old, new=new)
        if head is None or self._anchor is None:
            return
        try:
            self._anchor.advance(head)
        except (OSError, EditError) as error:  # the change stands: to call it failed would be wrong
            logger.error("row %d of the audit is committed, but its anchor is not written: %s", head.number, error)


def _plain(value: Any) -> Any:
    """Dataclasses and times as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _process_user() -> str:
    """Who runs this process, for the audit; a container may have users without a name."""
    try:
        return getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"
