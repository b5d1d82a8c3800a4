"""Whether a patch may be published, and until when."""

from __future__ import annotations

from datetime import UTC, datetime

from vllm_edit.errors import EditError
from vllm_edit.names import short
from vllm_edit.registry.entries import PatchEntry


def publishable_until(entry: PatchEntry, *, override: str, by: str, valid_until: datetime | None) -> datetime | None:
    """Return when the publication expires: `valid_until` or the patch's own, whichever comes first; None for never.

    Args:
        entry: The patch.
        override: Reason to publish a patch that its gate did not accept.
        by: Who publishes; an override requires it.
        valid_until: Requested end.

    Raises:
        EditError: the gate did not accept the patch and there is no override with a name, or the end is in the past.
    """
    if entry.status != "accepted":
        _check_override(entry, override, by)
    if valid_until is not None and valid_until.tzinfo is None:
        raise EditError(f"expected an end with a zone, like 2030-01-31T12:00:00Z, got {valid_until.isoformat()}")
    ends = min((time for time in (valid_until, entry.valid_until) if time is not None), default=None)
    if ends is not None and ends <= datetime.now(UTC):
        raise EditError(
            f"{short(entry.name)} would have ended at {ends.isoformat()} already; give a later end, or change its "
            "edits' valid_until and compile again"
        )
    return ends


def _check_override(entry: PatchEntry, override: str, by: str) -> None:
    if not override:
        reason = f": {entry.reason}" if entry.reason else ""
        verdict = f"was rejected by its gate{reason}" if entry.status == "rejected" else "was never judged by its gate"
        raise EditError(
            f"{short(entry.name)} {verdict}; correct the patch and compile it again, or publish it with --override "
            "REASON --who NAME"
        )
    if not by:
        raise EditError(f"an override of the gate of {short(entry.name)} needs a name: give yours with --who")
