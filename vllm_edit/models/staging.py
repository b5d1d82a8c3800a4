"""Atomic creation of a folder: it is written under another name and renamed when it is complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vllm_edit.errors import EditError, Unavailable
from vllm_edit.files import make_folder, sync_folder


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
        part.mkdir(exist_ok=True)
        with _alone_in(part, target):
            try:
                _empty(part)
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
def _alone_in(part: Path, target: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when the process ends."""
    descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EditError(f"another process is writing {target}; wait for it, or name another folder") from error
        refuse_existing(target)  # another process may have finished between the first check and the lock
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
