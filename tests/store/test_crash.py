"""Writers that are killed or race leave a store that verifies, and nothing half-saved."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.store.example import compiled, new_store
from vllm_edit.store.store import Store

SEEDS = range(6)
# Imports torch once, then forks a writer per line that is read: a killed process costs no second import.
NURSERY = """
import os, sys
from tests.store.example import compiled
from vllm_edit.store.store import Store
made = [compiled(seed=seed) for seed in range({count})]
for line in sys.stdin:
    url = line.strip()
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        store = Store.open(url)
        print("ready", flush=True)
        while True:
            for one in made:
                store.save(one)
            store.gc(dry_run=False)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""
WRITER = """
import sys
from tests.store.example import compiled
from vllm_edit.store.store import Store
store = Store.open(sys.argv[1])
for seed in range({count}):
    print(*(store.adapter_id(store.save(compiled(seed=seed))) for _ in range(3)))
"""


def test_a_store_verifies_after_writers_killed_at_any_moment(store: Store, tmp_path: Path) -> None:
    folder = Path(store.url)
    delays, round_s = random.Random(0), _seconds_of_a_round(tmp_path / "timing")
    seen: set[int] = set()
    with _nursery() as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for _ in range(40):
            print(store.url, file=nursery.stdin, flush=True)
            child = int(nursery.stdout.readline())
            assert nursery.stdout.readline() == "ready\n"
            time.sleep(delays.uniform(0, round_s))
            os.kill(child, signal.SIGKILL)
            assert nursery.stdout.readline() == "gone\n"
            opened = Store.open(store.url)
            assert opened.verify() == []
            assert opened.registry.verify_audit().problems == ()
            for name in opened.names():
                assert opened.adapter_id(name) > 0
            opened.registry.close()
            seen.add(len(opened.names()))
        nursery.stdin.close()
    assert len(seen) > 1, f"the kills must fall on different states, all fell on {seen}"
    left = list((folder / "tmp").glob("*"))
    for path in left:
        os.utime(path, (0, 0))
    store.gc(dry_run=False)
    assert list((folder / "tmp").glob("*")) == []
    assert store.registry.retired.since() == {}
    assert {path.name for path in (folder / "patches").iterdir()} == set(store.names())
    assert store.resolve(store.save(compiled())) == store.names()[0]


def test_two_writers_of_the_same_patches_agree(store: Store) -> None:
    command = [sys.executable, "-c", WRITER.format(count=len(SEEDS)), store.url]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "12"]
    printed = [one.communicate(timeout=500)[0] for one in writers]
    assert [one.returncode for one in writers] == [0, 0]
    assert printed[0] == printed[1]
    assert store.verify() == []
    assert sorted(store.names()) == sorted(compiled(seed=seed).name for seed in SEEDS)
    assert list((Path(store.url) / "tmp").glob("*")) == []


def _seconds_of_a_round(folder: Path) -> float:
    """How long what the children do once takes here, so that the kills spread over all of it."""
    store, made = new_store(folder), [compiled(seed=seed) for seed in SEEDS]
    started = time.perf_counter()
    for one in made:
        store.save(one)
    store.gc(dry_run=False)
    return time.perf_counter() - started


def _nursery() -> subprocess.Popen[str]:
    code = NURSERY.format(count=len(SEEDS))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
