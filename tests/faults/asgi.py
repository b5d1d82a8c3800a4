"""Requests straight into an ASGI application, as a server's parser passes them, and a stub of vLLM's application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Sent:
    """Any path and body; header names in lower case."""

    method: str
    path: str
    headers: tuple[Header, ...]
    body: bytes
    query: bytes = b""

    @property
    def said(self) -> str:
        """The whole answer as text, to search it for another tenant's data."""
        parts = [*(part for header in self.headers for part in header), self.body, self.query]
        return "\n".join([self.path, self.method, *(part.decode("latin-1") for part in parts)])


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """Everything in it."""
        return "\n".join([*(f"{name}: {value}" for name, value in self.headers.items()), self.content.decode()])


async def send(app: Any, request: Sent) -> Reply:
    """The application's answer; its exceptions are raised."""
    messages: list[Any] = []
    incoming = iter([{"type": "http.request", "body": request.body, "more_body": False}])

    async def receive() -> Any:
        return next(incoming, {"type": "http.disconnect"})

    async def keep(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "headers": list(request.headers),
        "query_string": request.query,
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, keep)
    start, *rest = messages
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], headers, b"".join(message.get("body", b"") for message in rest))


class Behind:
    """Replaces vLLM: answers with the body that reached it, and records scope and body of every request."""

    def __init__(self) -> None:
        self.reached: list[tuple[Mapping[str, Any], bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.reached.append((scope, body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body or b"{}"})
