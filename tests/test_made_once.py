"""Folders that several tests read are made once in a run, by the first of its processes that asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tests.made_once import WORKER, MadeOnce, of_this_run


def test_of_several_that_ask_at_once_one_makes_the_folder_and_all_read_it_whole(tmp_path: Path) -> None:
    together, made = Barrier(4), list[int]()

    def ask(number: int) -> str:
        def make(folder: Path) -> None:
            made.append(number)
            (folder / "first").write_text(str(number))
            (folder / "last").write_text(str(number))

        once = MadeOnce(tmp_path / "root")  # of its own, as in a process of its own: the lock is the file's
        together.wait()
        folder = once("thing", make)
        return (folder / "first").read_text() + (folder / "last").read_text()

    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(ask, range(4)))
    assert len(made) == 1
    assert read == [str(made[0]) * 2] * 4


def test_names_are_folders_of_their_own(tmp_path: Path) -> None:
    once = MadeOnce(tmp_path / "root")
    one, other = (once(name, lambda folder: (folder / "file").touch()) for name in ("one", "other"))
    assert one != other
    assert (one / "file").exists()
    assert (other / "file").exists()


def test_a_folder_whose_making_failed_is_made_anew(tmp_path: Path) -> None:
    once = MadeOnce(tmp_path / "root")

    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        once("thing", fails)
    folder = once("thing", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_the_processes_of_a_run_have_one_place(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of `pytest -n` has its temporary folder inside the run's; a process alone has the run's itself."""
    own, places = tmp_path_factory.mktemp("run"), list[Path]()
    monkeypatch.setenv(WORKER, "gw0")
    for worker in ("gw0", "gw1"):
        (own / worker).mkdir()
        monkeypatch.setattr(tmp_path_factory, "_basetemp", own / worker)
        places.append(of_this_run(tmp_path_factory)("thing", lambda folder: None))
    monkeypatch.delenv(WORKER)
    monkeypatch.setattr(tmp_path_factory, "_basetemp", own)
    places.append(of_this_run(tmp_path_factory)("thing", lambda folder: None))
    assert set(places) == {own / "made-once" / "thing"}
