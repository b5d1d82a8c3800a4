"""Garbage collection: out of the registry, then out of the servers, then off the disk, also after kills in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.store.example import compiled, new_store
from vllm_edit.errors import NotFound
from vllm_edit.files import RemoteFiles
from vllm_edit.registry import publications, rollouts
from vllm_edit.registry.patches import PatchEntry
from vllm_edit.registry.registry import Registry
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.store.garbage import Collected, gc
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

LONG_S, BUSY_S = 3600.0, 120.0  # longer than any test; a limit for a busy machine


@pytest.fixture
def store(registry_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", registry_url)
    made = new_store(tmp_path / "store")
    yield made
    made.registry.close()


@pytest.fixture
def names(store: Store) -> list[str]:
    """Two unused patches, and the newest."""
    return [store.save(compiled(seed=seed)) for seed in range(3)]


def beat(store: Store, id: str, drained: int) -> None:
    store.registry.servers.beat(id, host="host", pid=ord(id), generation=10**6, drained=drained)


def beat_as_of_now(store: Store, id: str) -> None:
    """The server follows the registry's present state, and has drained all that this state has retired."""
    own = store.registry.revision()
    store.registry.servers.beat(
        id, host="host", pid=ord(id), generation=own.generation, drained=own.generation, token=own.token
    )


def folders(store: Store) -> set[str]:
    return {path.name for path in (Path(store.url) / "patches").iterdir()}


class Ahead(datetime):
    """The clock of a machine that is a year ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(days=365)


def test_gc_on_a_machine_whose_clock_is_ahead_keeps_what_is_served(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = datetime.now(UTC) + timedelta(days=90)
    names = [store.save(compiled(seed=seed)) for seed in range(4)]
    for tenant in ("acme", "globex"):
        store.registry.create_tenant(tenant)
    for name in names:
        store.registry.set_status(name, "accepted")
    store.registry.publish("acme", names[0], valid_until=ends)
    store.registry.publish("globex", names[1], valid_until=ends)
    store.registry.rollouts.create(
        Rollout("spring", "globex", Arm("weights", names[1], ends), Arm("weights", names[2], ends), "salt")
    )
    for module in (publications, rollouts):
        monkeypatch.setattr(module, "datetime", Ahead)
    assert store.registry.published() == set(names[:3])
    assert [store.registry.retired.add(store.registry.patch(name)) for name in names[:3]] == [False] * 3
    assert gc(store, dry_run=False, wait_s=0).removed == ()


def test_gc_removes_only_patches_that_no_tenant_can_be_served(store: Store) -> None:
    names = [store.save(compiled(seed=seed)) for seed in range(4)]
    store.registry.create_tenant("acme")
    for name in names:
        store.registry.set_status(name, "accepted")
    store.registry.publish("acme", names[0])
    store.registry.publish("acme", names[1])
    assert gc(store).removed == (names[2],)
    assert store.names() == names[::-1], "without dry_run=False nothing is removed"
    assert gc(store, dry_run=False).removed == (names[2],)
    assert store.names() == [names[3], names[1], names[0]]
    store.registry.rollback("acme")
    assert gc(store, dry_run=False).removed == (names[1],)
    assert problems_of(store) == []
    with pytest.raises(NotFound):
        store.load(names[1])


def test_gc_leaves_the_members_of_a_composition_that_stays(store: Store) -> None:
    member, _newer = store.save(compiled()), store.save(compiled(seed=1))
    full = compiled(patch="both", seed=2)
    composition = full.manifest.model_copy(update={"kind": "composition", "members": (member,)})
    store.save(replace(full, manifest=composition))
    assert gc(store).removed == ()


def test_gc_leaves_the_members_of_a_composition_within_a_composition(store: Store) -> None:
    def composed(patch: str, member: str, seed: int) -> str:
        full = compiled(patch=patch, seed=seed)
        composition = full.manifest.model_copy(update={"kind": "composition", "members": (member,)})
        return store.save(replace(full, manifest=composition))

    member, _newer = store.save(compiled()), store.save(compiled(seed=1))
    inner, _newer_inner = composed("inner", member, 2), store.save(compiled(patch="inner", seed=3))
    composed("outer", inner, 4)
    assert gc(store).removed == ()


def test_files_stay_until_every_live_server_has_drained_them(store: Store, names: list[str]) -> None:
    second, first, newest = names  # the newer one is retired first
    beat(store, "a", drained=10**6)
    beat(store, "b", drained=0)
    assert gc(store, dry_run=False, wait_s=0) == Collected((), (first, second), (f"host:{ord('b')}",))
    assert store.names() == [newest]
    assert folders(store) == set(names)
    assert problems_of(store) == []
    assert gc(store).removed == (first, second)
    with pytest.raises(NotFound):
        store.entry(first)
    with pytest.raises(NotFound):
        store.resolve(first)

    beat(store, "b", drained=store.registry.retired.since()[first])
    assert gc(store, dry_run=False, wait_s=0) == Collected((first,), (second,), (f"host:{ord('b')}",))
    assert folders(store) == {second, newest}
    store.registry.servers.leave("b")
    assert gc(store, dry_run=False, wait_s=0) == Collected((second,))
    assert folders(store) == {newest}
    assert store.registry.retired.since() == {}
    assert problems_of(store) == []


def test_a_server_that_has_drained_need_not_follow_the_changes_of_gc_itself(store: Store, names: list[str]) -> None:
    store.save(compiled(seed=3))
    beat(store, "a", drained=0)
    assert gc(store, dry_run=False, wait_s=0) == Collected((), tuple(reversed(names)), (f"host:{ord('a')}",))
    unused, _newer = store.save(compiled(patch="other")), store.save(compiled(patch="other", seed=1))
    beat_as_of_now(store, "a")
    assert gc(store, dry_run=False, wait_s=0) == Collected(tuple(reversed(names)), (unused,), (f"host:{ord('a')}",))
    assert folders(store) == {*store.names(), unused}
    beat_as_of_now(store, "a")
    assert gc(store, dry_run=False, wait_s=0) == Collected((unused,))


def test_gc_continues_as_soon_as_the_last_server_has_drained(store: Store, names: list[str]) -> None:
    beat(store, "a", drained=0)
    before = store.registry.generation()
    with ThreadPoolExecutor(1) as thread:
        collecting = thread.submit(gc, store, dry_run=False, wait_s=LONG_S)
        assert store.registry.wait_for_change(before + 1, BUSY_S)  # two are retired
        while store.registry.retired.since().keys() != {*names[:2]}:
            pass
        assert folders(store) == set(names)
        beat(store, "a", drained=store.registry.generation())
        assert collecting.result(BUSY_S) == Collected((names[1], names[0]))
    assert folders(store) == {names[2]}


def test_a_patch_that_is_compiled_again_while_gc_waits_stays(
    store: Store, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(store, "a", drained=0)
    store.registry.set_status(names[0], "accepted")
    id = store.adapter_id(names[0])
    waits, saved = Event(), Event()

    def sleep(_seconds: float) -> None:
        waits.set()
        assert saved.wait(BUSY_S)

    monkeypatch.setattr("vllm_edit.registry.servers.time.sleep", sleep)
    with ThreadPoolExecutor(1) as thread:
        collecting = thread.submit(gc, store, dry_run=False, wait_s=LONG_S)
        assert waits.wait(BUSY_S)
        store.save(compiled(seed=0))
        beat(store, "a", drained=10**6)
        saved.set()
        assert collecting.result(BUSY_S) == Collected((names[1],))
    assert store.names() == [names[0], names[2]]
    assert (store.adapter_id(names[0]), store.entry(names[0]).status) == (id, "accepted")
    assert problems_of(store) == []


def test_files_that_gc_removes_while_they_are_saved_again_are_there_afterwards(
    store: Store, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add, collected = store.registry.add_patch, list[Collected]()

    def collect_then_add(*arguments: Any, **named: Any) -> PatchEntry:
        collected.append(gc(store, dry_run=False))
        return add(*arguments, **named)

    monkeypatch.setattr(store.registry, "add_patch", collect_then_add)
    assert store.save(compiled(seed=0)) == names[0]
    assert collected == [Collected((names[1], names[0]))]
    assert store.names() == [names[0], names[2]]
    assert problems_of(store) == []


def test_a_patch_that_is_listed_while_gc_removes_it_is_not_entered_anew(
    store: Store, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    glob = store.files.glob

    def glob_then_collect(pattern: str) -> list[str]:
        found = glob(pattern)
        monkeypatch.setattr(store.files, "glob", glob)
        gc(store, dry_run=False)
        return found

    monkeypatch.setattr(store.files, "glob", glob_then_collect)
    assert store.names() == [names[2]]
    assert [entry.name for entry in store.registry.patches()] == [names[2]]


@pytest.mark.parametrize("step", ["remove_folder", "commit"])
def test_a_gc_that_is_cut_short_is_finished_by_the_next(
    store: Store, names: list[str], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if step == "remove_folder":
            patched.setattr(store.files, "remove_folder", cut)
        else:
            patched.setattr("vllm_edit.registry.patches.remove", cut)
        with pytest.raises(KeyboardInterrupt):
            gc(store, dry_run=False)
    assert folders(store) == (set(names) if step == "remove_folder" else {names[0], names[2]})
    assert store.names() == [names[2]]
    assert problems_of(store) == []
    assert store.registry.verify_audit().problems == ()
    assert gc(store, dry_run=False).removed == (names[1], names[0])
    assert folders(store) == {names[2]}


def test_a_patch_whose_files_are_half_removed_can_be_compiled_again(
    store: Store, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(store, "a", drained=0)
    gc(store, dry_run=False, wait_s=0)
    (Path(store.url) / "patches" / names[0] / "factors.safetensors").unlink()
    store.save(compiled(seed=0))
    assert store.names() == [names[0], names[2]]
    assert problems_of(store) == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries that are opened from now on wait only briefly for a lock."""
    monkeypatch.setattr("vllm_edit.registry.database._BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("vllm_edit.registry.database._OVERTIME", "-c lock_timeout=50ms")


@pytest.mark.usefixtures("impatient")
def test_changes_of_the_registry_do_not_wait_while_files_are_deleted(
    store: Store, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, made = store.files.remove_folder, list[str]()

    def change_meanwhile(folder: str, marker: str) -> None:
        other = Registry(store.registry.url)
        made.append(other.create_tenant(f"tenant{len(made)}").name)
        other.set_status(names[2], "accepted")
        other.publish(made[-1], names[2])
        other.rollback(made[-1])
        other.servers.beat("a", host="host", pid=1, generation=10**6, drained=10**6)
        other.close()
        remove(folder, marker)

    monkeypatch.setattr(store.files, "remove_folder", change_meanwhile)
    assert gc(store, dry_run=False).removed == (names[1], names[0])
    assert made == ["tenant0", "tenant1"]
    assert problems_of(store) == []


@pytest.mark.usefixtures("impatient")
def test_other_patches_are_saved_while_files_are_deleted(
    store: Store, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, saved = store.files.remove_folder, list[str]()

    def save_meanwhile(folder: str, marker: str) -> None:
        other = Store.open(store.url)
        saved.append(other.save(compiled(patch="other", seed=len(saved))))
        other.registry.close()
        remove(folder, marker)

    monkeypatch.setattr(store.files, "remove_folder", save_meanwhile)
    assert gc(store, dry_run=False).removed == (names[1], names[0])
    assert set(store.names()) == {names[2], *saved}
    assert problems_of(store) == []


def test_a_patch_that_is_saved_again_while_its_files_are_deleted_is_whole_afterwards(
    store: Store, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an object store, where a folder is deleted one file after the other."""
    store.files = remote = RemoteFiles(LocalFileSystem(), store.url)
    filesystem, saving = remote._fs, list[Future[str]]()
    other = Store(store.url, RemoteFiles(LocalFileSystem(), store.url), Registry(store.registry.url))
    entering = Event()
    settled = other.registry.retired.settled

    def tell() -> AbstractContextManager[object]:
        entering.set()
        return settled()

    def delete_slowly(path: str, recursive: bool) -> None:
        found = filesystem.find(path)
        if names[0] in path:
            saving.append(thread.submit(other.save, compiled(seed=0)))
            assert entering.wait(BUSY_S)
        for file in found:
            filesystem.rm_file(file)

    monkeypatch.setattr(other.registry.retired, "settled", tell)
    monkeypatch.setattr(filesystem, "rm", delete_slowly)
    with ThreadPoolExecutor(1) as thread:
        assert gc(store, dry_run=False).removed == (names[1], names[0])
        assert saving[0].result(BUSY_S) == names[0]
    assert store.names() == [names[0], names[2]]
    assert problems_of(store) == []
    other.registry.close()


KILLED = """
import os, signal, sys
from vllm_edit.store.garbage import gc
from vllm_edit.store.store import Store
store = Store.open(sys.argv[1])
def half(folder, marker):
    os.unlink(os.path.join(store.url, folder, marker))
    os.kill(os.getpid(), signal.SIGKILL)
store.files.remove_folder = half
gc(store, dry_run=False)
"""


def test_a_gc_that_is_killed_while_it_deletes_is_finished_by_the_next(store: Store, names: list[str]) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, store.url], timeout=BUSY_S)
    assert killed.returncode == -signal.SIGKILL
    assert store.names() == [names[2]]
    assert problems_of(store) == []
    assert set(store.registry.retired.since()) == {*names[:2]}
    assert gc(store, dry_run=False).removed == (names[1], names[0])
    assert folders(store) == {names[2]}
    assert store.registry.verify_audit().problems == ()


def test_a_patch_that_a_killed_gc_left_half_deleted_can_be_compiled_again(store: Store, names: list[str]) -> None:
    subprocess.run([sys.executable, "-c", KILLED, store.url], timeout=BUSY_S)
    for seed in (0, 1):
        assert store.save(compiled(seed=seed)) == names[seed]
    assert set(store.names()) == {*names}
    assert problems_of(store) == []
