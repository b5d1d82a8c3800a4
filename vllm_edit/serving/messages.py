"""ASGI messages on their way through the router: a body read whole and handed on, headers stripped and added."""

from __future__ import annotations

import json
import re
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from vllm_edit.serving.bodies import TooLarge

FOREIGN = ("x-amzn-sagemaker-", "x-vllm-edit-")
# The last makes vLLM answer with the load of the whole server: what all other tenants are doing.
_TOLD = ("authorization", "x-request-id", "endpoint-load-metrics-format")
_STRIPPED = (*FOREIGN, *_TOLD, "content-length", "transfer-encoding")


class Sender:
    """`send` with extra headers on the answer's start; bodies pass unbuffered. begun: the client has its start.

    told_as: (name, other): where the answer says which model it is of, and says `name`, the client is told `other`. In
    JSON a quotation mark within a text has a backslash before it, so nothing that the model says is touched.
    """

    def __init__(self, send: Send, extra: dict[str, str]) -> None:
        self._send, self.extra, self.begun = send, extra, False
        self.told_as: tuple[str, str] | None = None
        self._start: Message | None = None  # held back until it is known how long the body is

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in self.extra.items():
                headers[name] = value
            if self.told_as is not None:
                self._start = message
                return
            self.begun = True
        elif self.told_as is not None and message["type"] == "http.response.body":
            message = {**message, "body": _renamed(message.get("body", b""), *self.told_as)}
            if self._start is not None:
                self.begun = True
                await self._send(_with_length(self._start, message))
                self._start = None
        await self._send(message)


def _renamed(body: bytes, name: str, other: str) -> bytes:
    said = re.compile(rb'("model"\s*:\s*)' + re.escape(json.dumps(name).encode()))
    return said.sub(rb"\1" + json.dumps(other).encode().replace(b"\\", rb"\\"), body)


def _with_length(start: Message, first: Message) -> Message:
    """The answer's start for a body that may be longer or shorter than it said: in one piece, or of unknown length."""
    headers = MutableHeaders(scope=start)
    if first.get("more_body", False):
        del headers["content-length"]
    elif "content-length" in headers:
        headers["content-length"] = str(len(first["body"]))
    return start


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None if the client went away."""
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body exceeds {limit:,} bytes; send a shorter request")
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def replayed(scope: Scope, receive: Receive, content: bytes) -> tuple[Scope, Receive]:
    """Scope and receive for this body; after it, `receive` is the client's again (it tells a disconnect)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    inner = without(scope, _STRIPPED)
    inner["headers"].append((b"content-length", str(len(content)).encode()))
    return inner, replay


def without(scope: Scope, prefixes: tuple[str, ...]) -> MutableMapping[str, Any]:
    """The scope without headers that begin so: what a client must not tell vLLM."""
    kept = [
        (name, value) for name, value in scope["headers"] if not name.decode("latin-1").lower().startswith(prefixes)
    ]
    return {**scope, "headers": kept}


def peer_of(scope: Scope) -> str | None:
    """The address that the connection comes from."""
    client = scope.get("client")
    return client[0] if client else None


async def nothing() -> Message:
    return {"type": "http.disconnect"}
