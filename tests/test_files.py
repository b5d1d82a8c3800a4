"""Files appear whole or not at all, and a full disk stays unchanged."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vllm_edit.errors import EditError, Unavailable
from vllm_edit.files import Files, LocalFiles, RemoteFiles, file_lock, open_files, replacing

# The limit on a file's size is the system's own: the write fails in the middle, as on a full disk.
TOO_LARGE = """
import resource, sys
from pathlib import Path
from vllm_edit.errors import Unavailable
from vllm_edit.files import LocalFiles
files = LocalFiles(Path(sys.argv[1]))
files.write("kept/a", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda: files.write("kept/a", b"x" * 2000),
    lambda: files.write_folder("patches/p", {"small": b"s", "deep/large": b"x" * 2000, "marker": b"m"}, "marker"),
):
    try:
        write()
    except Unavailable as error:
        print(error)
"""


WRITTEN = ("kept/a", "patches/p")


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", TOO_LARGE, tmp_path], capture_output=True, text=True, check=True)
    messages = [f"{tmp_path / what} cannot be written: File too large; fix that and try again" for what in WRITTEN]
    assert ran.stdout.splitlines() == messages
    files = LocalFiles(tmp_path)
    assert files.read("kept/a") == b"old"
    assert not files.exists("patches/p")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "kept" / "a"]


@pytest.mark.parametrize("only_writer", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, only_writer: bool) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail(new: Path) -> None:
        new.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"), replacing(path, only_writer=only_writer) as new:
        fail(new)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]
    (tmp_path / "a.new").write_text("left by a killed writer")
    with replacing(path, only_writer=only_writer) as new:
        new.write_text("new")
    assert path.read_text() == "new"
    assert (tmp_path / "a.new").exists() is not only_writer


def test_locks_keep_processes_apart(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from vllm_edit.files import LocalFiles
files = LocalFiles(Path(sys.argv[1]))
for _ in range(50):
    with files.locked("count"):
        files.write("count", b"%d" % (int(files.read("count")) + 1))
"""
    files = LocalFiles(tmp_path)
    files.write("count", b"0")
    counting = [subprocess.Popen([sys.executable, "-c", program, tmp_path]) for _ in "1234"]
    assert [item.wait(timeout=300) for item in counting] == [0] * 4
    assert files.read("count") == b"200"


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from vllm_edit.files import LocalFiles
with LocalFiles(Path(sys.argv[1])).locked("a"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program, tmp_path]).returncode == -signal.SIGKILL
    with file_lock(tmp_path / "a.lock", wait=False):
        pass


def test_a_file_system_without_locks_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(Unavailable, match=r"a\.lock cannot be locked: Function not implemented"):
        _lock(LocalFiles(tmp_path))


class DriverError(Exception):
    """As those of object stores' libraries: no `OSError`."""


class Broken(MemoryFileSystem):  # type: ignore[misc]
    """An object store whose every call fails."""

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise DriverError("no route to host")

    cat_file = exists = glob = pipe_file = rm_file = rm = _fail


CALLS: dict[str, Callable[[Files], object]] = {
    "read": lambda files: files.read("a/b"),
    "exists": lambda files: files.exists("a/b"),
    "glob": lambda files: files.glob("a/*"),
    "write": lambda files: files.write("a/b", b"x"),
    "write_folder": lambda files: files.write_folder("a/c", {"marker": b"x"}, "marker"),
    "remove_folder": lambda files: files.remove_folder("a/b", "marker"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_object_store_that_fails_is_unavailable_and_the_drivers_message_is_reported(
    call: Callable[[Files], object],
) -> None:
    with pytest.raises(Unavailable, match=r"^memory:///root.* cannot be \w+: DriverError: no route to host; fix"):
        call(RemoteFiles(Broken(), "/root"))


@pytest.mark.parametrize("call", [*CALLS.values(), lambda files: _lock(files)], ids=[*CALLS, "locked"])
def test_a_disk_that_fails_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Files], object]
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    for name in ("read_bytes", "exists", "glob", "open", "rename", "replace"):
        monkeypatch.setattr(Path, name, fail)
    monkeypatch.setattr(os, "open", fail)  # of locks
    with pytest.raises(Unavailable, match=r"cannot be \w+: Stale file handle; fix that and try again"):
        call(LocalFiles(tmp_path))


def _lock(files: Files) -> None:
    with files.locked("a"):
        pass


def test_an_error_under_a_lock_is_not_called_a_failure_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), LocalFiles(tmp_path).locked("a"):
        raise OSError("mine")


@pytest.mark.parametrize("files", [LocalFiles(Path("/nowhere")), RemoteFiles(MemoryFileSystem(), "/nowhere")])
def test_a_file_that_is_not_there_is_no_failure(files: Files) -> None:
    with pytest.raises(FileNotFoundError):
        files.read("a/b")
    assert not files.exists("a/b")
    assert files.glob("a/*") == []


@pytest.mark.parametrize("url", ["nosuch://bucket/store", "git://x@nowhere:/store", "github://x"])
def test_a_url_that_nothing_opens_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(EditError, match=rf"expected a store's folder, or a URL that fsspec opens, got {url}"):
        open_files(url)


def test_two_sweepers_do_not_trip_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFiles(tmp_path)
    for name in "abc":
        (tmp_path / "tmp" / name).mkdir(parents=True)
    glob = Path.glob

    def swept_meanwhile(path: Path, pattern: str) -> list[Path]:
        found = list(glob(path, pattern))
        found[0].rmdir()
        return found

    monkeypatch.setattr(Path, "glob", swept_meanwhile)
    files.sweep(older_than_s=-1)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_machine_whose_clock_is_ahead_sweeps_no_file_of_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "written now").touch()
    monkeypatch.setattr(time, "time", lambda: 2e10)
    LocalFiles(tmp_path).sweep(older_than_s=3600)
    assert [left.name for left in (tmp_path / "tmp").iterdir()] == ["written now"]
    LocalFiles(tmp_path / "without one").sweep(older_than_s=3600)
