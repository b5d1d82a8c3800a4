"""ASGI messages that pass the router: reads and replays bodies, strips and adds headers."""

from __future__ import annotations

import json
import re

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from vllm_edit.serving.bodies import TooLarge

FOREIGN = ("x-amzn-sagemaker-", "x-vllm-edit-")
# The last header makes vLLM report server-wide load, which would leak other tenants' activity.
_WITHHELD = ("authorization", "x-request-id", "endpoint-load-metrics-format")
_STRIPPED = (*FOREIGN, *_WITHHELD, "content-length", "transfer-encoding")


class Sender:
    """`send` that adds headers to the response's start and passes bodies on unbuffered.

    begun: the response's start has been sent. renamed: (name, other) replaces `name` by `other` in the response's
    `model` field. JSON escapes quotation marks within strings, so generated text cannot match.
    """

    def __init__(self, send: Send, extra: dict[str, str]) -> None:
        self._send, self.extra, self.begun = send, extra, False
        self.renamed: tuple[str, str] | None = None
        self._start: Message | None = None  # held back until the body's length is known

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in self.extra.items():
                headers[name] = value
            if self.renamed is not None:
                self._start = message
                return
            self.begun = True
        elif self.renamed is not None and message["type"] == "http.response.body":
            message = {**message, "body": _renamed(message.get("body", b""), *self.renamed)}
            if self._start is not None:
                self.begun = True
                await self._send(_with_length(self._start, message))
                self._start = None
        await self._send(message)


def _renamed(body: bytes, name: str, other: str) -> bytes:
    said = re.compile(rb'("model"\s*:\s*)' + re.escape(json.dumps(name).encode()))
    return said.sub(rb"\1" + json.dumps(other).encode().replace(b"\\", rb"\\"), body)


def _with_length(start: Message, first: Message) -> Message:
    """Correct the content-length of a response's start to the renamed body; delete it for a streamed body."""
    headers = MutableHeaders(scope=start)
    if first.get("more_body", False):
        del headers["content-length"]
    elif "content-length" in headers:
        headers["content-length"] = str(len(first["body"]))
    return start


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None if the client disconnected.

    Raises:
        TooLarge: the body has more than `limit` bytes.
    """
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
    """Scope and receive that replay `content`; after it, `receive` is the client's again and reports a disconnect."""
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


def without(scope: Scope, prefixes: tuple[str, ...]) -> Scope:
    """The scope without headers that have one of the prefixes: vLLM must not read them from a client."""
    allowed = [
        (name, value) for name, value in scope["headers"] if not name.decode("latin-1").lower().startswith(prefixes)
    ]
    return {**scope, "headers": allowed}


def peer_of(scope: Scope) -> str | None:
    """The address that the connection comes from."""
    client = scope.get("client")
    return client[0] if client else None


async def nothing() -> Message:
    return {"type": "http.disconnect"}
