"""A real server in a child process, and a client that asks it many things at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx

from vllm_edit.errors import EditError


@dataclass(frozen=True)
class Ask:
    """One question to the server: `model` is an alias such as `acme`, `acme:ike` or the base's name."""

    model: str
    prompt: str
    chat: bool = False


@dataclass(frozen=True)
class Told:
    """The answer's first line, and what the server says of it: exact adapter, mode, prompt tokens added."""

    text: str
    adapter: str | None
    mode: str
    tokens_added: int
    seconds: float


class LocalServer:
    """`vllm-edit serve` on a free loopback port, stopped on exit; its output goes to `log`."""

    def __init__(self, store: str, log: Path, *flags: str, patience: float = 300.0) -> None:
        self.store, self.log, self.flags, self.patience = store, log, flags, patience
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalServer:
        command = [sys.executable, "-m", "vllm_edit.cli", "serve", "--store", self.store, "--port", str(self.port)]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "VLLM_EDIT_EXPOSE": "1"}
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                [*command, *self.flags],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def ask(self, questions: Sequence[Ask], tokens: int = 24) -> list[Told]:
        """All questions at once, greedily; answers in their order."""
        with httpx.Client(base_url=self.url, timeout=120) as client, ThreadPoolExecutor(32) as pool:
            return list(pool.map(lambda question: self._one(client, question, tokens), questions))

    def _one(self, client: httpx.Client, question: Ask, tokens: int) -> Told:
        body = {"model": question.model, "temperature": 0, "max_tokens": tokens}
        started = time.perf_counter()
        if question.chat:
            turns = [{"role": "user", "content": question.prompt}]
            answer = client.post("/v1/chat/completions", json={**body, "messages": turns})
        else:
            answer = client.post("/v1/completions", json={**body, "prompt": question.prompt})
        seconds = time.perf_counter() - started
        if answer.status_code != 200:
            raise EditError(f"{question.model} answered {answer.status_code}: {answer.text}")
        choice = answer.json()["choices"][0]
        text = choice["message"]["content"] if question.chat else choice["text"]
        headers = answer.headers
        return Told(
            text=text.strip().split("\n")[0],
            adapter=headers.get("x-vllm-edit-adapter"),
            mode=headers.get("x-vllm-edit-mode", ""),
            tokens_added=int(headers.get("x-vllm-edit-tokens") or 0),
            seconds=seconds,
        )

    def _wait(self) -> None:
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

    def _tail(self) -> str:
        last = self.log.read_text(errors="replace").strip().splitlines()[-15:]
        return f"the end of {self.log}:\n" + "\n".join(last)

    def _stop(self) -> None:
        """End the server with its engine: they are a process group of their own."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
