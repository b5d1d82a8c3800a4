"""May a patch be published, and until when."""

from __future__ import annotations

from datetime import UTC, datetime

from vllm_edit.errors import EditError
from vllm_edit.names import short
from vllm_edit.registry.entries import PatchEntry


def publishable_until(entry: PatchEntry, *, override: str, by: str, valid_until: datetime | None) -> datetime | None:
    """The end of a publication: `valid_until` or the patch's own, whichever comes first; None if there is none.

    Raises:
        EditError: its gate did not accept the patch and there is no override in somebody's name, or the end is past.
    """
    if entry.status != "accepted":
        _check_override(entry, override, by)
    if valid_until is not None and valid_until.tzinfo is None:
        raise EditError(f"expected an end with its zone, like 2030-01-31T12:00:00Z, got {valid_until.isoformat()}")
    ends = min((time for time in (valid_until, entry.valid_until) if time is not None), default=None)
    if ends is not None and ends <= datetime.now(UTC):
        raise EditError(
            f"{short(entry.name)} would have ended at {ends.isoformat()} already; give a later end, or mend its edits' "
            "valid_until and compile again"
        )
    return ends


def _check_override(entry: PatchEntry, override: str, by: str) -> None:
    if not override:
        reason = f": {entry.reason}" if entry.reason else ""
        said = f"was rejected by its gate{reason}" if entry.status == "rejected" else "was never judged by its gate"
        raise EditError(
            f"{short(entry.name)} {said}; mend the patch and compile it again, or publish it with --override REASON "
            "--who NAME"
        )
    if not by:
        raise EditError(f"{short(entry.name)} is published against its gate in somebody's name: say whose with --who")
