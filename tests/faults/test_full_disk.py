"""On a full disk a write fails in one clear line, leaves no incomplete file, and works again when there is room."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.faults.disk import Disk, mounted
from tests.faults.sizes import Sizes
from tests.serving import places
from tests.serving.places import save_accepted
from tests.serving.without_engine import Place, run
from tests.store.example import compiled, moment, new_store, site
from vllm_edit.deltas.delta import Delta
from vllm_edit.errors import NotFound, Unavailable
from vllm_edit.registry.audit import ANCHOR
from vllm_edit.serving.server_settings import Settings
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

pytestmark = pytest.mark.slow

ENOUGH = 47
"""Number of pages: more than any of these writes needs."""
Record = Callable[[str, object], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as made:
        yield made


@pytest.fixture
def rooms(sizes: Sizes) -> Sequence[int]:
    """From no page to enough."""
    return [round(number * ENOUGH / (sizes.rooms - 1)) for number in range(sizes.rooms)]


@pytest.fixture
def store(disk: Disk) -> Iterator[Store]:
    """A store on the disk: a patch that tenant acme is served, and a newer patch."""
    made = new_store(disk.folder / "store")
    first = save_accepted(made, compiled())
    save_accepted(made, compiled(seed=1))
    made.registry.create_tenant("acme")
    made.registry.publish("acme", first)
    made.registry.close()
    yield made
    made.registry.close()


def test_saving_a_patch_fails_whole_and_works_again(
    disk: Disk, store: Store, rooms: Sequence[int], record_property: Record
) -> None:
    refusals = []
    for pages in rooms:
        new, before = compiled(seed=10 + pages), store.names()
        refusals.append(refused(disk, store, pages, lambda new=new: store.save(new)))
        if refusals[-1] and store.names() != before:  # its files were there before the registry had no room
            assert store.names() == [new.name, *before]
            assert store.entry(new.name).status == "ungated"
        store.save(new)
        assert store.names() == [new.name, *before]
    assert_some(refusals, record_property)


def test_publishing_fails_whole_and_works_again(
    disk: Disk, store: Store, rooms: Sequence[int], record_property: Record
) -> None:
    newer, older = store.names()
    refusals = []
    for pages in rooms:
        after = newer if store.registry.active("acme") == older else older
        before = store.registry.tenants(), store.registry.audit()
        refusals.append(refused(disk, store, pages, lambda after=after: store.registry.publish("acme", after)))
        if refusals[-1]:
            assert (store.registry.tenants(), store.registry.audit()) == before
            store.registry.publish("acme", after)
        assert store.registry.active("acme") == after
    assert_some(refusals, record_property)


def test_a_change_is_valid_if_its_anchor_had_no_room(
    disk: Disk, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", f"sqlite:///{tmp_path / 'elsewhere.db'}")  # its own disk has room
    moved = Store.create(disk.folder / "moved", site(), moment())
    disk.leave(0)
    with caplog.at_level(logging.ERROR):
        moved.registry.create_tenant("globex")
    assert f"anchor is not written: {disk.folder / 'moved' / ANCHOR} cannot be written: No space left" in caplog.text
    assert moved.registry.verify_audit().not_anchored == 1
    disk.free()
    moved.registry.create_tenant("initech")
    assert moved.registry.verify_audit().not_anchored == 0
    assert problems_of(moved) == []
    moved.registry.close()


def test_reading_needs_no_room(disk: Disk, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A running server: its registry is open, its copies are on another disk."""
    name = store.registry.active("acme")
    assert name is not None
    monkeypatch.setenv("TMPDIR", str(disk.folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    disk.leave(0)
    assert store.registry.snapshot().active("acme", datetime.now(UTC)) == name
    assert Delta.load_peft(store.adapter_folder(name, tmp_path / "cache")).digest == compiled().delta.digest
    assert store.load(name).name == name
    assert problems_of(store) == []


def test_a_local_copy_fails_whole_and_works_again(
    disk: Disk, tmp_path: Path, rooms: Sequence[int], record_property: Record
) -> None:
    store = new_store(tmp_path / "store")
    name, cache = store.save(compiled()), disk.folder / "cache"
    refusals = []
    for pages in rooms:
        disk.leave(pages)
        refusals.append(reason(lambda: store.adapter_folder(name, cache), str(cache / name)))
        assert not refusals[-1] or not cache.exists() or list(cache.iterdir()) == []
        disk.free()
        shutil.rmtree(store.adapter_folder(name, cache))
    assert_some(refusals, record_property)
    store.registry.close()


def test_a_server_without_room_for_an_adapter_says_so_and_answers_when_there_is(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_edit.files._MEMORY", disk.folder)  # too small
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    template = places.make_store(tmp_path / "template", places.make_site(places.make_model(tmp_path / "model")))
    name = places.add_patch(template, "capital", 1)
    template.registry.close()
    place = Place(tmp_path, tmp_path / "template", Settings(store="here"))
    assert disk.folder in Path(place.folder.name).parents
    disk.leave(0)
    refusal, base = run(place.ask("capital")), run(place.ask("atlas"))
    assert (refusal.status_code, base.status_code) == (503, 200)
    assert f"{name} cannot be written: No space left on device" in refusal.json()["error"]["message"]
    disk.free()
    assert run(place.ask("capital")).json()["body"]["model"] == name


def test_a_new_store_fails_whole_and_works_again(disk: Disk, rooms: Sequence[int], record_property: Record) -> None:
    refusals, room = [], disk.room
    for pages in (*rooms, 10 * ENOUGH):
        assert disk.room == room, "a store that was not made, or is closed, holds no file open"
        folder = disk.folder / f"store-{pages}"
        disk.leave(pages)
        refusals.append(reason(lambda folder=folder: new_store(folder).registry.close(), str(folder)))
        if refusals[-1]:
            with pytest.raises(NotFound, match="no store"):
                Store.open(folder)
        disk.free()
        made = new_store(folder)
        made.registry.create_tenant("acme")
        assert problems_of(made) == []
        made.registry.close()
        shutil.rmtree(folder)
    assert_some(refusals, record_property)


def test_the_program_reports_a_full_disk_in_one_line(
    disk: Disk, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program, url = Program(monkeypatch, capsys), str(disk.folder / "store")
    disk.leave(0)
    for words in (
        ("tenant", "create", "globex"),
        ("tenant", "rollback", "acme"),
        ("export", "capital", disk.folder / "exported"),
    ):
        ran = program(*words, "--store", url)
        assert ran.code == 1
        assert len(ran.err.splitlines()) == 1, ran.err
        printed = ran.err.replace(str(tmp_path), "")  # the path's own words do not count
        assert "disk is full" in printed or "No space left" in printed
    disk.free()
    assert program("tenant", "create", "globex", "--store", url).code == 0
    assert program("export", "capital", disk.folder / "exported", "--store", url).code == 0
    assert program("verify", "--store", url).code == 0


def refused(disk: Disk, store: Store, pages: int, write: Callable[[], object]) -> str:
    """The reason of the refusal with this much room, empty without a refusal; the store is whole afterwards, and
    nothing is left."""
    store.registry.close()
    disk.leave(pages)
    try:
        message = reason(write, store.url)
    finally:
        store.registry.close()
        disk.free()
    assert problems_of(store) == []
    assert store.registry.verify_audit().problems == ()
    assert list((Path(store.url) / "tmp").glob("*")) == []
    return message


def reason(write: Callable[[], object], named: str) -> str:
    """The reason of the refusal, in one line that names the path; empty without a refusal."""
    try:
        write()
    except Unavailable as error:
        message = str(error)
    else:
        return ""
    assert named in message
    assert len(message.splitlines()) == 1
    return message


def assert_some(refusals: Sequence[str], record_property: Record) -> None:
    """The write is refused without room, and not refused with enough room."""
    assert refusals[0]
    assert not refusals[-1]
    record_property("fillings", len(refusals))
    record_property("refused", sum(map(bool, refusals)))
