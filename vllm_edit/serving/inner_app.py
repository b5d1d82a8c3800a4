"""vLLM's own routes, behind the router, for requests of the server itself."""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Message, Scope

from vllm_edit.json_value import JSONObject, JSONValue


class InnerApp:
    """The application behind the router. outer: vLLM's whole application, which its routes read their state from; it is
    known once the server has started."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.outer: object = None

    async def post(self, path: str, body: JSONObject) -> tuple[int, JSONValue]:
        """Send a request, past the router. A cancelled caller cancels the request in the engine too.

        Returns:
            The status, and the answer's JSON; None if the answer is no JSON.
        """
        content = json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": None,
            "server": None,
            "app": self.outer,
            "state": {},
        }
        unread, status, answer = [content], 500, bytearray()

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.Event().wait()  # vLLM waits for a disconnect, which never comes
            raise AssertionError

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                answer.extend(message.get("body", b""))

        await self._app(scope, receive, send)
        try:
            parsed: JSONValue = json.loads(bytes(answer))
        except ValueError:
            parsed = None
        return status, parsed
