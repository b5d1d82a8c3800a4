"""The last known state is read as it was written, also after a kill during writing, and never an older state."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings

from tests.rollout.example import rollout
from tests.store.example import compiled, new_store
from tests.store.snapshots import SNAPSHOTS
from vllm_edit.errors import Corrupt, EditError
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.rollout.arm import Arm
from vllm_edit.store.last_state import LastState
from vllm_edit.store.store import Store

# Imports once, then forks a writer per line that is read. A writer stores states of growing generations, one after
# another; each is printed before it is stored.
NURSERY = """
import os, sys
from pathlib import Path
from tests.store.test_last_state import state
from vllm_edit.store.last_state import LastState
for line in sys.stdin:
    path, first = line.split()
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        for generation in range(int(first), 10**9):
            print(generation, flush=True)
            LastState(path).keep(state(generation))
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def state(generation: int) -> Snapshot:
    """A state that takes some milliseconds to write, and differs from any other."""
    return Snapshot(generation, (), {f"tenant{n}-{generation}": () for n in range(5000)}, {})


@settings(deadline=None)
@given(SNAPSHOTS)
def test_a_stored_state_comes_back_equal(snapshot: Snapshot) -> None:
    with TemporaryDirectory() as folder:
        last = LastState(Path(folder) / "state.json")
        assert last.read() is None
        assert last.keep(snapshot)
        assert last.read() == snapshot


def test_the_fields_of_the_file_have_the_names_that_earlier_versions_read(tmp_path: Path) -> None:
    last = LastState(tmp_path / "state.json")
    last.keep(state(1))
    stored = json.loads(last.path.read_text())["state"]
    assert set(stored) == {"generation", "patches", "standing", "keys", "rollouts", "beside", "shadowing", "token"}


def test_a_registrys_own_state_comes_back_equal(store: Store, tmp_path: Path) -> None:
    name = store.save(compiled())
    store.registry.set_status(name, "accepted")
    for tenant in ("acme", "globex"):
        store.registry.create_tenant(tenant)
        store.registry.publish(tenant, name, why="北京", by="ann")
        store.registry.create_api_key(tenant)
    store.registry.rollouts.create(
        rollout(control=Arm("base"), treatment=Arm("ike", name), overrides={"ann": "control"})
    )
    store.registry.rollouts.ramp("spring", 12.5)
    store.registry.rollouts.kill("spring")
    snapshot = store.registry.snapshot()
    last = LastState(tmp_path / "state.json")
    last.keep(snapshot)
    read = last.read()
    assert read == snapshot
    assert read.rollouts["acme"].state == "killed"


def test_an_older_state_never_replaces_a_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    generations = list(range(40))
    random.Random(0).shuffle(generations)
    with ThreadPoolExecutor(8) as threads:
        kept = dict(zip(generations, threads.map(lambda n: LastState(path).keep(state(n)), generations), strict=True))
    assert LastState(path).read() == state(39)
    assert kept[39]
    assert not LastState(path).keep(state(38))
    other = replace(state(39), standing={})
    assert LastState(path).keep(other)
    assert LastState(path).read() == other
    assert not LastState(path).keep(state(37), is_newest=lambda: False)
    assert LastState(path).keep(state(36), is_newest=lambda: True), "the registry has lost the later states"
    assert LastState(path).read() == state(36)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_state(tmp_path: Path) -> None:
    path, delays = tmp_path / "state.json", random.Random(0)
    last, known = LastState(path), -1
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for _ in range(30):
            print(path, known + 1, file=nursery.stdin, flush=True)
            child = int(nursery.stdout.readline())
            said = [int(nursery.stdout.readline())]
            time.sleep(delays.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            while (line := nursery.stdout.readline()) != "gone\n":
                said.append(int(line))
            found = last.read()
            if found is None:
                assert said == [0]
                continue
            assert found.generation in (said[-1], said[-1] - 1)
            assert found == state(found.generation)
            known = found.generation
        nursery.stdin.close()
    assert known > 0
    last.keep(state(known + 1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.json", "state.json.lock"]


def test_only_its_user_can_read_it(tmp_path: Path) -> None:
    last = LastState(tmp_path / "made" / "state.json")
    before = os.umask(0)
    try:
        last.keep(state(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(last.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(last.path.parent.stat().st_mode) == 0o700


def test_a_damaged_state_is_refused_and_written_anew(tmp_path: Path) -> None:
    last = LastState(tmp_path / "state.json")
    last.keep(Snapshot(3, (), {"acme": ()}, {}))
    whole = last.path.read_bytes()
    positions = range(len(whole))
    flipped = [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in positions]
    for damaged in [*flipped, *(whole[:n] for n in positions), b"[]", b"{}", b"\xff"]:
        last.path.write_bytes(damaged)
        with pytest.raises(Corrupt, match=r"state\.json does not match its digest; remove it"):
            last.read()
    assert last.keep(state(1))
    assert last.read() == state(1)


def test_each_store_and_registry_has_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_EDIT_STATE", str(tmp_path / "state"))
    stores = [new_store(tmp_path / name) for name in "ab"]
    first, second = (LastState.of(store).path for store in stores)
    assert first.parent == tmp_path / "state"
    assert first != second
    monkeypatch.chdir(tmp_path)
    assert LastState.of(Store.open("a")).path == first, "however the folder is spelled"
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", "postgresql://ann:secret@db/registry")
    shared = LastState.of(Store.open("a")).path
    assert shared != first
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", "postgresql://ann:changed@db/registry")
    assert LastState.of(Store.open("a")).path == shared, "a new password makes no other registry"
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", "postgresql://ann@db/registry?password=changed")
    assert LastState.of(Store.open("a")).path == shared, "wherever the password is written"


def test_the_default_place_is_the_users_state_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_EDIT_STATE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in ((str(tmp_path / "xdg"), tmp_path / "xdg"), ("relative", tmp_path / ".local" / "state")):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert LastState.of(store).path.parent == folder / "vllm-edit"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it answers for a user without a home folder
    with pytest.raises(EditError, match="VLLM_EDIT_STATE"):
        LastState.of(store)
