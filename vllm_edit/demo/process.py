"""Runs a server in a child process on a free loopback port; stops it with all its children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from vllm_edit.errors import EditError


class ServerProcess:
    """`command --port PORT`, ready when `/health` answers, stopped on exit; output goes to `log`. Main thread only."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, patience: float = 300.0
    ) -> None:
        self.command, self.log, self.environment, self.patience = command, log, dict(environment or {}), patience
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._before: Any = signal.SIG_DFL

    def __enter__(self) -> Self:
        self._start()
        try:
            self.wait()
        except BaseException:
            self._stop()
            raise
        return self

    @contextmanager
    def starting(self) -> Iterator[Self]:
        """Start the server, and stop it on exit. Call `wait` before the first request."""
        self._start()
        try:
            yield self
        finally:
            self._stop()

    def wait(self) -> None:
        """Wait until the server is ready.

        Raises:
            EditError: it ended, or is not ready in time; the message has the end of its log.
        """
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise EditError(f"the server did not start (exit {self._process.returncode}); {self._tail()}")
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.25)
        raise EditError(f"the server was not ready after {self.patience:.0f} s; {self._tail()}")

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                [*self.command, "--port", str(self.port)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        # A terminated program must also stop its server: as SystemExit, the signal passes through `__exit__`.
        self._before = signal.signal(signal.SIGTERM, _exit)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The server's process id; its engine runs in child processes."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill the server and its engine, as a machine failure does."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _tail(self) -> str:
        last = self.log.read_text(errors="replace").strip().splitlines()[-15:]
        return f"the end of {self.log}:\n" + "\n".join(last)

    def _stop(self) -> None:
        """Stop the server and its engine: they form one process group."""
        signal.signal(signal.SIGTERM, self._before)
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
