"""Atomic creation of a folder: it is written under another name and renamed when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout
from safetensors import SafetensorError

from vllm_edit.errors import EditError, Unavailable
from vllm_edit.files import file_lock, make_folder, sync_folder


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder `.<name>.part` beside `target`, which is renamed to the target when the block ends.

    An exception removes the folder. The next process with this target removes the files of a killed process.

    Raises:
        EditError: the target exists and is not empty, or another process is writing it.
        Unavailable: the disk is full or not writable.
    """
    refuse_existing(target)
    part = target.parent / f".{target.name}.part"
    try:
        make_folder(target.parent.absolute())
        with _alone(part, target):
            try:
                if part.exists():
                    shutil.rmtree(part)
                part.mkdir()
                yield part
                sync_folder(part)
                part.rename(target)
                sync_folder(target.parent)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unavailable(f"{target} cannot be written: {reason}; correct this and try again") from error


def refuse_existing(target: Path) -> None:
    """Raise EditError if `target` exists, unless it is an empty folder."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise EditError(f"{target} exists and is not empty; name another folder, or remove it first")


@contextmanager
def _alone(part: Path, target: Path) -> Iterator[None]:
    """Hold the lock of a folder that may not exist yet; its file is beside the folder."""
    file = part.with_name(f"{part.name}.lock")
    lock = file_lock(file, wait=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise EditError(f"another process is writing {target}; wait for it, or name another folder") from error
    try:
        refuse_existing(target)  # another process may have finished between the first check and the lock
        yield
    finally:
        file.unlink(missing_ok=True)  # before the release: a process that opened this file does not get its lock
        lock.release()
