"""Observes an answer's messages: when it begins and ends, how it ends, and the token usage that it reports.

A JSON answer reports its `usage` in its body. A stream reports it in its last event with a usage, if the client asks
for it (`stream_options.include_usage`); /v1/responses reports it in `response.completed`. Tokens are never counted or
estimated: without a reported usage they stay unknown.
"""

from __future__ import annotations

import json
import re
import time
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Send

from vllm_edit.json_value import JSONValue
from vllm_edit.serving.bodies import RESPONSES

Ended = Literal["whole", "left", "broken", "refused"]
"""How an answer ended. whole: complete. left: the client disconnected first. broken: interrupted, or an error in the
stream. refused: the router refused it before the engine, because the choice could not be applied."""

_KEPT_BYTES = 4 * 2**20  # maximum of a JSON body, or of a stream's line; the tokens of a longer answer stay unknown
_MOST_TOKENS = 2**31 - 1

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
# An answer that ended at its maximum number of tokens: in completions and chat, then in responses. JSON escapes
# quotation marks within strings, so generated text cannot match.
_CUT = re.compile(
    rb'"finish_reason"\s*:\s*"length"|'
    rb'"incomplete_details"\s*:\s*\{\s*"reason"\s*:\s*"max_output_tokens"'
)
# How a stream that began with status 200 reports an error: first in completions, then in responses.
_ERROR = re.compile(rb'data:\s*\{\s*"error"\s*:\s*\{|event:\s*(?:error|response\.failed)\s*$')


class Usage:
    """Observes a response's ASGI messages after forwarding them, unmodified.

    status: None until the answer begins. first_token_seconds: None unless the answer is streamed. seconds: the answer's
    duration, up to now while it runs.
    """

    def __init__(self, route: str, begun: float | None = None) -> None:
        """Start the clock. begun: the request's arrival by `time.perf_counter`; by default now."""
        self._responses = route == RESPONSES
        self._begun = time.perf_counter() if begun is None else begun
        self._ended_at: float | None = None
        self.status: int | None = None
        self.first_token_seconds: float | None = None
        self._whole = self._left = self._failed = False
        self._cut = False
        self._content = ""
        self._kept = bytearray()  # a JSON body, or the unfinished line of a stream
        self._with_usage = b""  # the JSON that reports the usage

    @property
    def ended(self) -> Ended:
        """How the answer ended, if no more messages come."""
        if self._left:
            return "left"
        return "whole" if self._whole and not self._failed else "broken"

    @property
    def cut(self) -> bool:
        """True if the answer ended at its maximum number of tokens; of several answers, if one of them did."""
        return self._cut or (self._content == "application/json" and _CUT.search(self._kept) is not None)

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self._ended_at is None else self._ended_at) - self._begun

    def around(self, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Wrap `receive` and `send` so that this object observes their messages."""

        async def receive_and_look() -> Message:
            message = await receive()
            self.received(message)
            return message

        async def send_and_look(message: Message) -> None:
            await send(message)
            self.sent(message)

        return receive_and_look, send_and_look

    def received(self, message: Message) -> None:
        """Observe a message from the client. A disconnect after the answer's end is normal and ignored."""
        if message["type"] == "http.disconnect" and not self._whole:
            self._left = True

    def sent(self, message: Message) -> None:
        """Observe a message to the client."""
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
        return tokens_of(_parsed(self._with_usage or (bytes(self._kept) if self._whole else b"")))

    def _keep(self, body: bytes) -> None:
        if len(self._kept) + len(body) > _KEPT_BYTES:
            self._content, self._kept = "", bytearray()
        else:
            self._kept += body

    def _read_events(self, body: bytes) -> None:
        """Read the lines that end in `body`, and buffer an unfinished line."""
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
        if line.startswith(b"data:") and _CUT.search(line):
            self._cut = True
        if line.startswith(b"data:") and len(line) <= _KEPT_BYTES and _USAGE.search(line):
            self._with_usage = line.removeprefix(b"data:")

    def _is_token(self, line: bytes) -> bool:
        """True for an event with a token. /v1/responses sends other events first; other routes start with a token."""
        if self._responses:
            return line.startswith(b"event:") and line.rstrip().endswith(b".delta")
        return line.startswith(b"data:") and not line.rstrip().endswith(b"[DONE]")


def tokens_of(answer: JSONValue) -> tuple[int | None, int | None]:
    """(of the prompt, of the completion), as an answer or an event reports them; None where it does not."""
    if isinstance(answer, dict) and isinstance(answer.get("response"), dict):
        answer = answer["response"]
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return _count(usage, "prompt_tokens", "input_tokens"), _count(usage, "completion_tokens", "output_tokens")


def _parsed(content: bytes) -> JSONValue:
    """The JSON; None if it is none."""
    try:
        answer: JSONValue = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer


def _count(usage: JSONValue, *names: str) -> int | None:
    """The first valid number of tokens under one of the names."""
    found = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MOST_TOKENS), None)
