"""A server in a child process as a runner of evaluations: what a client gets, with what the server says answered."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
from transformers import PreTrainedTokenizerFast

from vllm_edit.evaluation.runners.runner import Reading, Request, Scored

_AT_ONCE = 48
_TRIES = 4


@dataclass(frozen=True)
class Reply:
    """text: empty where the server refused; then `refusal` is its message. id: of the answer's record."""

    text: str
    id: str
    refusal: str = ""


class ServerRunner:
    """Asks patches by their patch names: the server chooses what of a scoped one answers."""

    def __init__(self, url: str, base: str, tokenizer: PreTrainedTokenizerFast, context: int) -> None:
        self._url, self.base, self.tokenizer, self.context = url, base, tokenizer, context
        self.refused: list[str] = []

    @property
    def name(self) -> str:
        return "vllm-edit serve"

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        asked = [
            (request.patch.manifest.patch if request.patch else self.base, request.prompt, request.chat)
            for request in requests
        ]
        return [reply.text for reply in self.ask(asked, max_tokens)]

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        raise NotImplementedError("a server answers freely; force answers with another runner")

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        raise NotImplementedError("a server answers freely; read texts with another runner")

    def ask(self, asked: Sequence[tuple[str, str, bool]], max_tokens: int) -> list[Reply]:
        """(model, prompt, chat) → reply, many at once, in their order."""
        limits = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE)
        with (
            httpx.Client(base_url=self._url, timeout=600, limits=limits) as client,
            ThreadPoolExecutor(_AT_ONCE) as pool,
        ):
            replies = list(pool.map(lambda one: _reply(client, one, max_tokens), asked))
        self.refused += [reply.refusal for reply in replies if reply.refusal]
        return replies

    def record(self, reply: Reply) -> dict[str, Any]:
        """What the server says of an answer."""
        found: dict[str, Any] = httpx.get(f"{self._url}/v1/edits/answers/{reply.id}", timeout=60).json()
        return found


def _posted(client: httpx.Client, route: str, body: dict[str, Any]) -> httpx.Response:
    """A connection that the server closed while it was idle may be found closed only now: then once more."""
    for _ in range(_TRIES - 1):
        try:
            return client.post(route, json=body)
        except httpx.TransportError:
            continue
    return client.post(route, json=body)


def _reply(client: httpx.Client, asked: tuple[str, str, bool], max_tokens: int) -> Reply:
    model, prompt, chat = asked
    body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": max_tokens}
    said = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    answer = _posted(client, "/v1/chat/completions" if chat else "/v1/completions", body | said)
    number = answer.headers["x-vllm-edit-id"]
    if 400 <= answer.status_code < 500:
        return Reply("", number, str(answer.json()["error"]["message"]))
    answer.raise_for_status()
    choice = answer.json()["choices"][0]
    return Reply(choice["message"]["content"] or "" if chat else choice["text"], number)
