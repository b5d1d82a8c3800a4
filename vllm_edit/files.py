"""Storage of artefact files: a local folder, or any fsspec file system. Folders are created atomically.

A failing disk, network or driver raises `Unavailable` on reads and writes; a missing file raises `FileNotFoundError`.

A folder exists if its marker file exists. On a local disk a folder is written under `tmp/`, fsynced and renamed, so an
interruption at any time leaves nothing or everything. Object stores have no rename: there the marker is written last.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

import fsspec
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from vllm_edit.errors import EditError, Unavailable

_TEMPORARY = "tmp"
_MEMORY = Path("/dev/shm")


class Files(Protocol):
    """Files under a root, by relative path. Paths consist of names that `names` has checked.

    Every method raises `Unavailable` if the disk or the object store fails.
    """

    def read(self, path: str) -> bytes:
        """The bytes of a file; raises `FileNotFoundError` if it does not exist."""

    def exists(self, path: str) -> bool: ...

    def glob(self, pattern: str) -> list[str]:
        """Relative paths that match, sorted."""

    def write(self, path: str, data: bytes) -> None:
        """Write or replace one file atomically."""

    def write_folder(self, folder: str, files: Mapping[str, bytes], marker: str) -> None:
        """Create `folder` with `files` atomically; if another writer was first, its folder stays."""

    def remove_folder(self, folder: str, marker: str) -> None:
        """Remove a folder atomically, if it exists."""

    def locked(self, path: str) -> AbstractContextManager[None]:
        """Lock `path` against other processes. Object stores have no locks: there this does nothing."""

    def sweep(self, older_than_s: float) -> None:
        """Remove temporary files of dead writers."""


def open_files(url: str) -> Files:
    """Files at a local path or an fsspec URL (`s3://…`, `memory://…`).

    Raises:
        EditError: the URL is empty, its scheme is unknown, or its driver is not installed.
    """
    if not url.strip():
        raise EditError("the store's name is empty: expected a folder or a URL")
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, TypeError, OSError) as error:  # the last two: a driver without its arguments
        raise EditError(f"expected a store's folder, or a URL that fsspec opens, got {url}: {error}") from error
    return LocalFiles(Path(root)) if isinstance(filesystem, LocalFileSystem) else RemoteFiles(filesystem, root)


class LocalFiles:
    """`Files` on a local disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        with _reaching(self.root / path, "read", OSError):
            return (self.root / path).read_bytes()

    def exists(self, path: str) -> bool:
        with _reaching(self.root / path, "read", OSError):
            return (self.root / path).exists()

    def glob(self, pattern: str) -> list[str]:
        with _reaching(self.root, "listed", OSError):
            return sorted(str(found.relative_to(self.root)) for found in self.root.glob(pattern))

    def write(self, path: str, data: bytes) -> None:
        target, temporary = self.root / path, self._temporary()
        with becoming(target, temporary):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            make_folder(target.parent)
            _write_durably(temporary, data)
            temporary.replace(target)
            sync_folder(target.parent)

    def write_folder(self, folder: str, files: Mapping[str, bytes], marker: str) -> None:
        target, temporary = self.root / folder, self._temporary()
        with becoming(target, temporary):
            make_folder(target.parent)
            write_tree(temporary, files)
            move_into_place(temporary, target)

    def remove_folder(self, folder: str, marker: str) -> None:
        target, temporary = self.root / folder, self._temporary()
        with _reaching(target, "removed", OSError):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.rename(temporary)
            except FileNotFoundError:
                return
            sync_folder(target.parent)
            shutil.rmtree(temporary)

    @contextmanager
    def locked(self, path: str) -> Iterator[None]:
        lock = file_lock(self.root / f"{path}.lock")
        with ExitStack() as held:
            with _reaching(self.root / f"{path}.lock", "locked", OSError):
                held.enter_context(lock)
            yield

    def sweep(self, older_than_s: float) -> None:
        if not (self.root / _TEMPORARY).is_dir():
            return
        with (
            _reaching(self.root / _TEMPORARY, "written", OSError),
            tempfile.TemporaryFile(dir=self.root / _TEMPORARY) as new,
        ):  # the file system's clock dates it, as it dates the others; this machine's clock may be ahead
            limit = os.fstat(new.fileno()).st_mtime - older_than_s
        for left in (self.root / _TEMPORARY).glob("*"):
            with _reaching(left, "removed", OSError), suppress(FileNotFoundError):  # another sweeper may be faster
                if left.stat().st_mtime >= limit:
                    continue
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()

    def _temporary(self) -> Path:
        return self.root / _TEMPORARY / uuid.uuid4().hex


class RemoteFiles:
    """`Files` on an fsspec file system, where single files appear whole and folders do not exist.

    Drivers raise their libraries' errors (botocore's and aiohttp's have no base class but Exception), so every
    exception of a call counts as a failure.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str) -> None:
        self._fs, self._root = filesystem, root.rstrip("/")

    def read(self, path: str) -> bytes:
        with _reaching(self._place(path), "read", Exception):
            data: bytes = self._fs.cat_file(f"{self._root}/{path}")
            return data

    def exists(self, path: str) -> bool:
        with _reaching(self._place(path), "read", Exception):
            return bool(self._fs.exists(f"{self._root}/{path}"))

    def glob(self, pattern: str) -> list[str]:
        with _reaching(self._place(""), "listed", Exception):
            self._fs.invalidate_cache()
            return sorted(str(found)[len(self._root) + 1 :] for found in self._fs.glob(f"{self._root}/{pattern}"))

    def write(self, path: str, data: bytes) -> None:
        target = f"{self._root}/{path}"
        with _reaching(self._place(path), "written", Exception, absent=False):
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(target, data)

    def write_folder(self, folder: str, files: Mapping[str, bytes], marker: str) -> None:
        if self.exists(f"{folder}/{marker}"):
            return
        for name in sorted(files, key=lambda name: name == marker):
            self.write(f"{folder}/{name}", files[name])

    def remove_folder(self, folder: str, marker: str) -> None:
        with _reaching(self._place(folder), "removed", Exception):
            self._fs.invalidate_cache()
            with suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/{folder}/{marker}")
            with suppress(FileNotFoundError):
                self._fs.rm(f"{self._root}/{folder}", recursive=True)

    def locked(self, path: str) -> AbstractContextManager[None]:
        return nullcontext()

    def sweep(self, older_than_s: float) -> None:
        """Nothing to do: a folder without its marker is completed by the next writer of the same content."""

    def _place(self, path: str) -> str:
        """The file's name in messages."""
        return str(self._fs.unstrip_protocol(f"{self._root}/{path}"))


def memory_folder(least_free: int = 0) -> Path | None:
    """The folder for files in memory, if this user may write to it and `least_free` bytes are free, else None."""
    roomy = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= least_free
    return _MEMORY if roomy else None


def file_lock(path: Path, *, wait: bool = True) -> FileLock:
    """A lock on the file `path` between processes and threads; the file is created.

    The system releases the lock when its process ends, also when it is killed. On NFS, Linux asks the server for it. A
    file system without locks raises `OSError`: the library's substitute, a marker file, would outlive a killed process.

    Args:
        path: the file, of which nothing but the lock is used.
        wait: wait for the lock; otherwise taking it raises `filelock.Timeout` while another has it.
    """
    return FileLock(path, timeout=-1 if wait else 0, poll_interval=0.01, fallback_to_soft=False)


@contextmanager
def _reaching(place: object, done: str, failures: type[Exception], absent: bool = True) -> Iterator[None]:
    """Translate `failures` within the block to `Unavailable`. `absent`: a `FileNotFoundError` is not translated.

    Raises:
        Unavailable: one of the `failures` occurred; the message says what was `done` to `place`.
    """
    try:
        yield
    except failures as error:
        if absent and isinstance(error, FileNotFoundError):
            raise
        raise Unavailable(f"{place} cannot be {done}: {_reason(error)}; fix that and try again") from error


def _reason(error: Exception) -> str:
    """The system's or driver's message, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def becoming(target: Path, temporary: Path) -> Iterator[None]:
    """Guard the block that writes `temporary` and renames it to `target`. On failure `temporary` is removed.

    Raises:
        Unavailable: the write failed, for example on a full disk; the message names `target`.
    """
    try:
        yield
    except OSError as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise Unavailable(f"{target} cannot be written: {_reason(error)}; fix that and try again") from error


@contextmanager
def replacing(path: Path, *, only_writer: bool = False) -> Iterator[Path]:
    """A new file beside `path` to write in the block, which then takes its place: readers see the old or the new file.

    Args:
        path: the file to write or replace.
        only_writer: nobody else writes `path` at this time. The new file then has a fixed name, so that the next
            writer replaces what a killed one left.
    """
    new = path.with_name(f"{path.name}.{'new' if only_writer else uuid.uuid4().hex}")
    try:
        yield new
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        new.replace(path)
        sync_folder(path.parent)
    finally:
        new.unlink(missing_ok=True)


def write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` under a new `folder` and fsync every file and folder, so that a rename publishes them whole."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(path, data)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)


def move_into_place(temporary: Path, target: Path) -> None:
    """Rename a complete folder to its final name; if that exists, it stays and the new folder is removed."""
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(temporary)
        return
    sync_folder(target.parent)


def check_folder_of(path: Path) -> None:
    """Raise `EditError` if the folder into which a file would be written does not exist."""
    if not path.parent.is_dir():
        raise EditError(f"there is no folder {path.parent} to write {path.name} into")


def make_folder(folder: Path) -> None:
    """Create a folder durably: it and its parents are fsynced, so that it survives a power failure."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
