"""Racing writers leave a store that verifies, and no incomplete patch. For killed writers see
`tests.faults.test_kills`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.example import compiled
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

SEEDS = range(6)
WRITER = """
import sys
from tests.store.example import compiled
from vllm_edit.store.store import Store
store = Store.open(sys.argv[1])
for seed in range({count}):
    print(*(store.adapter_id(store.save(compiled(seed=seed))) for _ in range(3)))
"""


@pytest.mark.slow
def test_two_writers_of_the_same_patches_agree(store: Store) -> None:
    command = [sys.executable, "-c", WRITER.format(count=len(SEEDS)), store.url]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "12"]
    printed = [writer.communicate(timeout=500)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert printed[0] == printed[1]
    assert problems_of(store) == []
    assert sorted(store.names()) == sorted(compiled(seed=seed).name for seed in SEEDS)
    assert list((Path(store.url) / "tmp").glob("*")) == []
