"""A warm process whose children each do one operation, so that one that is killed does not cost another import.

    python -m tests.faults.nursery

On its standard input, one JSON list a line: the store's folder, its registry's URL or null, the operation, its
arguments; and an empty line when the child has ended. On its standard output: the child's number, `ready` when its
store is open, `done` when the operation is, and the child's exit status.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import torch

from tests.faults.operations import Operations
from vllm_edit.store.store import Store

ROOT = Path(__file__).parents[2]


def main() -> None:
    torch.set_num_threads(1)  # before any work: a child has only the thread that forked
    operations = Operations.ready()
    with TemporaryDirectory() as folder:
        store = operations.create(folder)
        operations.compile(store, "first")  # children inherit what this imports
        store.registry.close()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _live(operations, *json.loads(line))
        sys.stdin.readline()  # until then a dead child keeps its number, so that no other process is killed
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _live(operations: Operations, folder: str, registry: str | None, operation: str, *arguments: Any) -> None:
    """A child's life. Nothing is opened before the fork, so nothing is shared with another child."""
    print(os.getpid(), flush=True)
    try:
        if registry is not None:
            os.environ["VLLM_EDIT_REGISTRY"] = registry
        store = Store.open(folder)
        print("ready", flush=True)
        operations.do(store, operation, *arguments)
        print("done", flush=True)
    except BaseException:
        traceback.print_exc()
        print("failed", flush=True)
    os._exit(0)  # no clean-up: what is written must not depend on one


class Nursery:
    """The warm process, seen from outside. Its children open stores with the registry that this process would."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders: IO[str] = process.stdin
        self._news: IO[str] = process.stdout

    def seconds(self, folder: str, *order: Any) -> float:
        """Let a child do it all; returns how long that took, its store being open."""
        self._begin(folder, *order)
        started = time.perf_counter()
        news = self._read()
        taken = time.perf_counter() - started
        self._end()
        assert news == "done", f"{order} {news}, see above"
        return taken

    def kill(self, after_s: float, folder: str, *order: Any) -> bool:
        """Kill a child so long after its store was open; False if it was done before."""
        child = self._begin(folder, *order)
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        news = self._end()
        assert "failed" not in news, f"{order} failed, see above"
        return "done" not in news

    def _begin(self, folder: str, *order: Any) -> int:
        print(json.dumps([folder, os.environ.get("VLLM_EDIT_REGISTRY"), *order]), file=self._orders, flush=True)
        child = int(self._read())
        assert self._read() == "ready", "the store could not be opened, see above"
        return child

    def _end(self) -> list[str]:
        """The last output of a child that has ended."""
        print(file=self._orders, flush=True)
        news = [self._read()]
        while news[-1] not in ("0", str(-signal.SIGKILL)):
            news.append(self._read())
        return news

    def _read(self) -> str:
        line = self._news.readline()
        assert line, "the nursery died, see above"
        return line.strip()


@contextmanager
def nursery() -> Iterator[Nursery]:
    command = [sys.executable, "-m", "tests.faults.nursery"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment, cwd=ROOT
    ) as process:
        try:
            yield Nursery(process)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
