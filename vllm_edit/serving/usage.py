"""What the messages of one answer tell: when it began and ended, how it ended, and the tokens that it says it took.

A JSON answer says its `usage` in its body. A streamed one says it in its last event with a usage, if the client asked
for it (`stream_options.include_usage`), and of /v1/responses in `response.completed`. Nothing is counted or guessed:
where no usage is reported, the tokens stay unknown.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Literal

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Send

from vllm_edit.serving.bodies import RESPONSES

Ended = Literal["whole", "left", "broken", "refused"]
"""How an answer ended: whole; the client left before; it broke off, also by an error within the stream; or the router
refused it before the engine, for what was decided could not be applied."""

_KEPT_BYTES = 4 * 2**20  # of a JSON body, or of one line of a stream; the tokens of a longer one stay unknown
_MOST_TOKENS = 2**31 - 1

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
# A stream that has begun with status 200 can only tell an error so: the first of completions, the second of responses.
_ERROR = re.compile(rb'data:\s*\{\s*"error"\s*:\s*\{|event:\s*(?:error|response\.failed)\s*$')


class Usage:
    """Looks at an answer's messages after they are passed on; it changes and delays none.

    status: None until the answer begins. first_token_seconds: of a streamed answer; None for one in a single piece.
    seconds: of the whole answer, up to now while it runs.
    """

    def __init__(self, route: str, begun: float | None = None) -> None:
        """begun: when the request came, by `time.perf_counter`; default is now."""
        self._responses = route == RESPONSES
        self._begun = time.perf_counter() if begun is None else begun
        self._ended_at: float | None = None
        self.status: int | None = None
        self.first_token_seconds: float | None = None
        self._whole = self._left = self._failed = False
        self._content = ""
        self._kept = bytearray()  # a JSON body, or the line of a stream that has not ended
        self._telling = b""  # the JSON with the usage

    @property
    def ended(self) -> Ended:
        """How it ended, if nothing more comes."""
        if self._left:
            return "left"
        return "whole" if self._whole and not self._failed else "broken"

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self._ended_at is None else self._ended_at) - self._begun

    def around(self, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """`receive` and `send` for the application, seen by this object."""

        async def receive_and_look() -> Message:
            message = await receive()
            self.received(message)
            return message

        async def send_and_look(message: Message) -> None:
            await send(message)
            self.sent(message)

        return receive_and_look, send_and_look

    def received(self, message: Message) -> None:
        """Look at what the client sent. After the answer's end a server tells a disconnect too, which means nothing."""
        if message["type"] == "http.disconnect" and not self._whole:
            self._left = True

    def sent(self, message: Message) -> None:
        """Look at what the client was sent."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._content = Headers(raw=list(message.get("headers", ()))).get("content-type", "").partition(";")[0]
        elif message["type"] == "http.response.body":
            body = bytes(message.get("body", b""))
            if self._content == "text/event-stream":
                self._read_events(body)
            elif self._content == "application/json":
                self._keep(body)
            if not message.get("more_body", False):
                self._whole, self._ended_at = True, time.perf_counter()

    def tokens(self) -> tuple[int | None, int | None]:
        """(of the prompt, of the completion), as the answer reported them."""
        told = _usage(self._telling or (bytes(self._kept) if self._whole else b""))
        return _count(told, "prompt_tokens", "input_tokens"), _count(told, "completion_tokens", "output_tokens")

    def _keep(self, body: bytes) -> None:
        if len(self._kept) + len(body) > _KEPT_BYTES:
            self._content, self._kept = "", bytearray()
        else:
            self._kept += body

    def _read_events(self, body: bytes) -> None:
        """Read the lines that end in `body`; what is begun waits for its rest."""
        if b"\n" not in body:
            self._kept += body if len(self._kept) <= _KEPT_BYTES else b""
            return
        *lines, rest = (bytes(self._kept) + body).split(b"\n")
        self._kept = bytearray(rest)
        for line in lines:
            self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        if _ERROR.match(line):
            self._failed = True
        elif self.first_token_seconds is None and self._is_token(line):
            self.first_token_seconds = self.seconds
        if line.startswith(b"data:") and len(line) <= _KEPT_BYTES and _USAGE.search(line):
            self._telling = line.removeprefix(b"data:")

    def _is_token(self, line: bytes) -> bool:
        """/v1/responses tells of itself before there are tokens; the others begin when the engine has answered."""
        if self._responses:
            return line.startswith(b"event:") and line.rstrip().endswith(b".delta")
        return line.startswith(b"data:") and not line.rstrip().endswith(b"[DONE]")


def _usage(content: bytes) -> Any:
    """The `usage` of an answer or of an event with one; None where there is none."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if isinstance(told, dict) and isinstance(told.get("response"), dict):
        told = told["response"]
    return told.get("usage") if isinstance(told, dict) else None


def _count(told: Any, *names: str) -> int | None:
    """The number under one of the names, if it is one that could be a number of tokens."""
    found = [told.get(name) for name in names] if isinstance(told, dict) else []
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MOST_TOKENS), None)
