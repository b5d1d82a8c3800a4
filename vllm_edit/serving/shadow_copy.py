"""A client's request and answer, copied while they pass, for the other arm to repeat."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Message, Send

from vllm_edit.rollout.shadowed import Shadowed
from vllm_edit.serving.answer import Answer

_MOST_BYTES = 2**18
"""Maximum of an answer that is copied: beyond it nothing is compared."""


class ShadowCopy:
    """One request. tenant: whose it is. raw: its body as the client sent it."""

    def __init__(self, shadowed: Shadowed, tenant: str, route: str, raw: bytes) -> None:
        self.shadowed, self.tenant, self.route, self.raw = shadowed, tenant, route, raw
        self.content_type = ""
        self.answer: Answer | None = None
        self._chunks: list[bytes] = []
        self._size = 0

    @property
    def content(self) -> bytes:
        return b"".join(self._chunks)

    @property
    def answered(self) -> bool:
        """True if the client has the whole answer, and it is no error."""
        return self.answer is not None and (self.answer.status, self.answer.ended) == (200, "whole")

    @property
    def too_long(self) -> bool:
        return self._size > _MOST_BYTES

    def around(self, send: Send) -> Send:
        """Wrap `send` so that this object sees each message after it was sent, unmodified."""

        async def send_and_copy(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                headers = Headers(raw=list(message.get("headers", ())))
                self.content_type = headers.get("content-type", "").partition(";")[0]
            elif message["type"] == "http.response.body":
                self._add(bytes(message.get("body", b"")))

        return send_and_copy

    def _add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= _MOST_BYTES:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()
