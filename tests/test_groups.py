"""The processes of `pytest -n` get whole groups of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.groups import GROUPS, GroupScheduling

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scheduling(pytestconfig: pytest.Config) -> GroupScheduling:
    made = object.__new__(GroupScheduling)  # its constructor needs a process that distributes tests
    made.config = pytestconfig
    return made


def test_a_groups_files_stay_together_and_any_other_file_stays_whole(scheduling: GroupScheduling) -> None:
    for file, group in GROUPS.items():
        assert (ROOT / file).is_file(), file
        assert scheduling._split_scope(f"{file}::test_it[a::b]") == group
        assert list(GROUPS.values()).count(group) > 1, f"{group} is one file"
    own = Path(__file__).relative_to(ROOT).as_posix()
    assert {scheduling._split_scope(f"{own}::{test}") for test in ("test_a", "test_b[1]")} == {own}


def test_the_makefile_distributes_by_groups() -> None:
    """The hook that makes the scheduling looks for this option."""
    assert "--dist loadfile" in (ROOT / "Makefile").read_text(encoding="utf-8")
