"""Several patches: all are made before any is refused, and the progress ends with the last one."""

from __future__ import annotations

import pytest

from vllm_edit.editing.method import all_or_refused
from vllm_edit.errors import UnsafeEdit


def test_progress_counts_what_is_finished_up_to_all_also_where_a_patch_is_refused() -> None:
    seen: list[tuple[str, int, int | None]] = []

    def refuse() -> str:
        raise UnsafeEdit("one: missed")

    def note(step: str, done: int, total: int | None) -> None:
        seen.append((step, done, total))

    assert all_or_refused([lambda: "one", lambda: "two"], "compiling", note) == ["one", "two"]
    assert seen == [("compiling", 1, 2), ("compiling", 2, 2)]
    seen.clear()
    with pytest.raises(UnsafeEdit, match="one: missed"):
        all_or_refused([refuse, lambda: "three"], "compiling", note)
    assert seen[-1] == ("compiling", 2, 2), "the last is made before the first is refused"
