"""Folders that several tests read and that take time to make: the first process of a run that asks makes one for all.

Use, in a fixture:
    folder = made_once("initialised", make)  # `make` fills the empty folder that it is given

A test that reads such a folder does not change it. SQLite changes even a database that it only reads, so a test copies
a store and opens the copy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

WORKER = "PYTEST_XDIST_WORKER"
"""Environment variable of a process of `pytest -n`."""


class MadeOnce:
    """The folders of one run, by name. root: a folder that all processes of the run have in common."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(exist_ok=True)

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of that name. The first caller makes it, the others wait; if it fails, the next one tries again.

        It is made where it stays, because a store has the path of its model in it.
        """
        folder, complete = self._root / name, self._root / f"{name}.complete"
        with FileLock(self._root / f"{name}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                complete.touch()
        return folder


def of_this_run(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """With `pytest -n`, each process has a folder of its own inside the run's."""
    own = tmp_path_factory.getbasetemp()
    return MadeOnce((own.parent if WORKER in os.environ else own) / "made-once")
