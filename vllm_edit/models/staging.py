"""A folder that appears whole or not at all: written beside its place, renamed when it is finished."""

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
    """An empty folder `.<name>.part` beside `target`, which takes the target's name when the block ends.

    After an exception nothing of it stays. What a killed process left is removed by the next one with this target.

    Raises:
        EditError: the target is there and not empty, or another process is writing it.
        Unavailable: the disk is full, or refuses for another reason.
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
        raise Unavailable(f"{target} cannot be written: {reason}; mend that and try again") from error


def refuse_existing(target: Path) -> None:
    """Raises EditError if something is at `target`; an empty folder may be."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise EditError(f"{target} exists and is not empty; name another folder, or remove it first")


@contextmanager
def _alone_in(part: Path, target: Path) -> Iterator[None]:
    """Hold the folder's lock, which dies with the process."""
    descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EditError(f"another process is writing {target}; wait for it, or name another folder") from error
        refuse_existing(target)  # one that finished between the first look and the lock has renamed the folder
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
