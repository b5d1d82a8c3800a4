"""A small real disk, mounted for a test, that can be filled to the last page."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
"""A disk in memory gives room in pages."""


class Disk:
    """A file in it takes the room that must not be free."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._ballast = folder, folder / "ballast"

    def leave(self, pages: int) -> None:
        """Fill it until no more than the given number of pages is free."""
        self.free()
        with self._ballast.open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, self.room - pages * PAGE)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    @property
    def room(self) -> int:
        """In bytes."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize


@contextmanager
def mounted(folder: Path, size: int = 4 * 2**20) -> Iterator[Disk]:
    """A disk of `size` bytes, removed afterwards; skips the test without the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a full disk needs the program mount")
    if ran.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {ran.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # gone from sight even if something holds a file
