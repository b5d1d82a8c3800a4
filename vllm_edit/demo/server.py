"""A real server in a child process, and a client that sends many requests at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from vllm_edit.demo.process import ServerProcess
from vllm_edit.errors import EditError


@dataclass(frozen=True)
class Ask:
    """One question to the server: `model` is an alias such as `acme`, `acme:ike` or the base's name.

    `user` is the request's user, by which rollouts are split.
    """

    model: str
    prompt: str
    chat: bool = False
    user: str | None = None


@dataclass(frozen=True)
class Reply:
    """The answer's first line, and the server's information: exact adapter, mode, prompt tokens added."""

    text: str
    adapter: str | None
    mode: str
    tokens_added: int
    seconds: float


class LocalServer(ServerProcess):
    """`vllm-edit serve` on a store."""

    def __init__(
        self,
        store: str,
        log: Path,
        *flags: str,
        patience: float = 300.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "vllm_edit.cli", "serve", "--store", store, *flags]
        super().__init__(command, log, {"VLLM_EDIT_EXPOSE": "1", **(environment or {})}, patience)

    def base(self) -> str:
        """The base model's name in requests."""
        return str(httpx.get(f"{self.url}/v1/models", timeout=120).json()["data"][0]["id"])

    def ask(self, questions: Sequence[Ask], tokens: int = 12) -> list[Reply]:
        """Ask all questions concurrently, with greedy decoding; answers in order."""
        with httpx.Client(base_url=self.url, timeout=120) as client, ThreadPoolExecutor(32) as pool:
            return list(pool.map(lambda question: self._one(client, question, tokens), questions))

    def _one(self, client: httpx.Client, question: Ask, tokens: int) -> Reply:
        body = {"model": question.model, "temperature": 0, "max_tokens": tokens}
        headers = {} if question.user is None else {"X-User-Id": question.user}
        started = time.perf_counter()
        if question.chat:
            turns = [{"role": "user", "content": question.prompt}]
            answer = client.post("/v1/chat/completions", json={**body, "messages": turns}, headers=headers)
        else:
            answer = client.post("/v1/completions", json={**body, "prompt": question.prompt}, headers=headers)
        seconds = time.perf_counter() - started
        if answer.status_code != 200:
            raise EditError(f"{question.model} answered {answer.status_code}: {answer.text}")
        choice = answer.json()["choices"][0]
        text = choice["message"]["content"] if question.chat else choice["text"]
        answered = answer.headers
        return Reply(
            text=text.strip().split("\n")[0],
            adapter=answered.get("x-vllm-edit-adapter"),
            mode=answered.get("x-vllm-edit-mode", ""),
            tokens_added=int(answered.get("x-vllm-edit-tokens") or 0),
            seconds=seconds,
        )
