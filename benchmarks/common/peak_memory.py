"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_EVERY = 0.005  # seconds between two looks at the memory


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """MiB at the peak inside, above the start: of the GPU if there is one, else of this process (looked at often)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    _give_back()
    before, highest, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(0, highest[0] - before) / 2**20
    finally:
        done.set()
        watcher.join()


def _give_back() -> None:
    """Return freed memory to the system, so that the work's own does not hide in it (C libraries with malloc_trim)."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
