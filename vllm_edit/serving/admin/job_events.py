"""A job's progress as server-sent events (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from pydantic import TypeAdapter
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vllm_edit.errors import NotFound, TooMany, Unavailable
from vllm_edit.registry.jobs import Job

LOOK_S = 1.0
"""Time between two reads of the job."""
LONGEST_S = 600.0
"""A stream ends after this time; a client's library reconnects."""
MOST_STREAMS = 64
MOST_STREAMS_OF_A_KEY = 8

_STILL_S = 15.0
"""Proxies close connections that are silent for long."""
_JOB = TypeAdapter(Job)


class JobEvents:
    """The streams of one server."""

    def __init__(self) -> None:
        self._open = Counter[str]()  # key → its open streams

    def stream(
        self, first: Job, read: Callable[[], Awaitable[Job]], goes_on: Callable[[], bool], key: str
    ) -> StreamingResponse:
        """Return a stream: an event with the job's state as its name and the job as its data, at each change.

        The stream counts as open from now until the response ends.

        Args:
            first: the job now.
            read: reads it again.
            goes_on: whether the caller may still read it, and the server is not shutting down. A server waits for
                open streams before it stops.
            key: the caller's key, by its id.

        Raises:
            TooMany: this server has `MOST_STREAMS` open streams, or `MOST_STREAMS_OF_A_KEY` of this key.
        """
        if self._open[key] >= MOST_STREAMS_OF_A_KEY:
            raise TooMany(
                f"this server streams {MOST_STREAMS_OF_A_KEY} jobs of this key already; read the job instead, or end a "
                "stream first"
            )
        if self._open.total() >= MOST_STREAMS:
            raise TooMany(f"this server streams {MOST_STREAMS} jobs already; read the job instead, or try again later")
        response = _Streamed(_events(first, read, goes_on), partial(self._ended, key))
        self._open[key] += 1
        return response

    def _ended(self, key: str) -> None:
        self._open[key] -= 1
        self._open += Counter()  # without the keys that have none


class _Streamed(StreamingResponse):
    """Calls `ended` at its end. A generator's `finally` is not enough: if the client leaves early, it never starts."""

    def __init__(self, events: AsyncIterator[str], ended: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def _events(job: Job, read: Callable[[], Awaitable[Job]], goes_on: Callable[[], bool]) -> AsyncIterator[str]:
    started = spoke = time.monotonic()
    yield f"retry: {int(LOOK_S * 1000)}\n{_event(job)}"
    while job.open and time.monotonic() - started < LONGEST_S:
        await asyncio.sleep(LOOK_S)
        if not goes_on():
            return
        try:
            new = await read()
        except Unavailable:  # the registry may be back at the next look
            new = job
        except NotFound:
            return
        if new != job:
            job, spoke = new, time.monotonic()
            yield _event(job)
        elif time.monotonic() - spoke >= _STILL_S:
            spoke = time.monotonic()
            yield ": still here\n\n"


def _event(job: Job) -> str:
    """JSON in ASCII has no line break, which would end the data."""
    return f"event: {job.state}\ndata: {_JOB.dump_json(job, ensure_ascii=True).decode()}\n\n"
