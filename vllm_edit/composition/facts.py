"""The facts of edits that are composed, as messages name them."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.patch import Edit


def subjects_of(edits: Sequence[Edit]) -> str:
    """The subjects of some edits, for people."""
    return " / ".join(dict.fromkeys(edit.subject for edit in edits))
