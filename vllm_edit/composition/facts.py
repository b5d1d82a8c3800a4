"""Text about composed edits for messages and reports."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.patch import Edit


def subjects_of(edits: Sequence[Edit]) -> str:
    """The distinct subjects of the edits, for display."""
    return " / ".join(dict.fromkeys(edit.subject for edit in edits))
