"""An answer's messages give tokens, times and the end of the answer, for any chunks, and pass unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from vllm_edit.serving.bodies import CHAT, COMPLETIONS, RESPONSES
from vllm_edit.serving.usage import Usage

OPENAI = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
OF_RESPONSES = {"input_tokens": 12, "output_tokens": 34, "total_tokens": 46}


def data(event: Any) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def named(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + data({**fields, "type": kind})


SAID = {"choices": [{"delta": {"content": 'he said "usage": {"prompt_tokens": 1} and\n\ndata: 臺灣'}}]}
DONE = b"data: [DONE]\n\n"
CHATTED = data({"choices": [{"delta": {"role": "assistant", "content": ""}}]}) + data(SAID)
RESPONDED = (
    named("response.created", response={"usage": None, "tools": [{"parameters": {"usage": {"input_tokens": 1}}}]})
    + named("response.output_text.delta", delta="usage")
    + named("response.completed", response={"usage": OF_RESPONSES, "output": []})
)


def start(content_type: str = "text/event-stream; charset=utf-8", status: int = 200) -> dict[str, Any]:
    headers = [(b"content-type", content_type.encode())]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(content: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def streamed(content: bytes, route: str = CHAT, pieces: int = 1, end: bool = True) -> Usage:
    usage = Usage(route)
    usage.sent(start())
    for index in range(0, len(content), pieces):
        usage.sent(body(content[index : index + pieces]))
    if end:
        usage.sent(body(b"", more=False))
    return usage


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize(
    ("route", "content", "tokens"),
    [
        (CHAT, CHATTED + data({"choices": [], "usage": OPENAI}) + DONE, (12, 34)),
        (CHAT, (CHATTED + data({"choices": [], "usage": OPENAI}) + DONE).replace(b"\n", b"\r\n"), (12, 34)),
        (CHAT, CHATTED + DONE, (None, None)),
        (
            COMPLETIONS,
            b"".join(
                data({"choices": [{"text": "a"}], "usage": OPENAI | {"completion_tokens": n}}) for n in (1, 2, 34)
            ),
            (12, 34),
        ),
        (RESPONSES, RESPONDED, (12, 34)),
        (RESPONSES, RESPONDED.replace(b"data: ", b"data:"), (12, 34)),
    ],
)
def test_a_streams_last_usage_is_read_however_the_stream_is_cut(
    route: str, content: bytes, tokens: tuple[int | None, int | None], pieces: int
) -> None:
    usage = streamed(content, route, pieces)
    assert usage.tokens() == tokens
    assert (usage.status, usage.ended) == (200, "whole")
    assert usage.first_token_seconds is not None
    assert 0 <= usage.first_token_seconds <= usage.seconds == usage.seconds


@pytest.mark.parametrize(
    ("route", "used"),
    [(COMPLETIONS, OPENAI), (CHAT, OPENAI | {"prompt_tokens_details": None}), (RESPONSES, OF_RESPONSES)],
)
def test_a_json_answer_says_its_usage_in_its_body(route: str, used: dict[str, Any]) -> None:
    usage = Usage(route)
    usage.sent(start("application/json"))
    content = json.dumps({"choices": [{"text": "a"}], "usage": used}).encode()
    usage.sent(body(content[:20]))
    assert usage.tokens() == (None, None), "it has not ended"
    usage.sent(body(content[20:], more=False))
    assert usage.tokens() == (12, 34)
    assert usage.first_token_seconds is None, "nobody saw a token before the whole"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"usage": null}',
        b'{"usage": 3}',
        b'{"usage": {"prompt_tokens": true, "completion_tokens": -1}}',
        b'{"usage": {"prompt_tokens": 1.5, "completion_tokens": 4294967296}}',
        b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
        b'{"response": [{"usage": {"input_tokens": 1}}]}',
        b'{"text": "' + b"a" * 2**22 + b'", "usage": {"prompt_tokens": 1, "completion_tokens": 2}}',
    ],
)
def test_tokens_that_are_not_reported_stay_unknown(content: bytes) -> None:
    usage = Usage(CHAT)
    usage.sent(start("application/json"))
    usage.sent(body(content, more=False))
    assert usage.tokens() == (None, None)
    assert usage.ended == "whole"
    assert streamed(b"data: " + content + b"\n\n", pieces=2**16).tokens() == (None, None)


def test_a_line_without_an_end_is_not_collected_for_ever() -> None:
    usage = Usage(CHAT)
    usage.sent(start())
    for _ in range(100):
        usage.sent(body(b"a" * 2**20))
    assert len(usage._kept) < 6 * 2**20
    usage.sent(body(b"\n" + data({"usage": OPENAI}), more=False))
    assert usage.tokens() == (12, 34)


def test_the_first_token_of_a_responses_stream_is_its_first_delta() -> None:
    created, delta, _ = (part + b"\n\n" for part in RESPONDED.split(b"\n\n")[:3])
    assert streamed(created, RESPONSES).first_token_seconds is None
    assert streamed(created + delta, RESPONSES).first_token_seconds is not None
    assert streamed(DONE).first_token_seconds is None


@pytest.mark.parametrize(
    ("route", "error"),
    [
        (CHAT, data({"error": {"message": "Internal server error", "code": 500}}) + DONE),
        (RESPONSES, named("response.failed", response={})),
        (RESPONSES, named("error", message="no")),
    ],
)
def test_an_error_within_a_stream_breaks_it_though_its_status_was_fine(route: str, error: bytes) -> None:
    assert streamed(CHATTED, route).ended == "whole"
    assert streamed(CHATTED + error, route, pieces=5).ended == "broken"


def test_a_stream_without_its_end_broke_off() -> None:
    assert streamed(CHATTED, end=False).ended == "broken"
    assert Usage(CHAT).ended == "broken", "nothing was answered at all"


async def _through(app: Any, incoming: list[dict[str, Any]], usage: Usage) -> list[dict[str, Any]]:
    """The messages that `app` sends to the client. The client sends `incoming`, its last message after an answer has
    begun."""
    outgoing: list[dict[str, Any]] = []
    begun = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if len(incoming) == 1:
            await begun.wait()
        return incoming.pop(0)

    async def send(message: Any) -> None:
        outgoing.append(dict(message))
        begun.set()

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "asgi": {"spec_version": "2.3"}}
    await app(scope, *usage.around(receive, send))
    return outgoing


REQUEST = {"type": "http.request", "body": b"{}", "more_body": False}
GONE = {"type": "http.disconnect"}


def test_a_client_that_goes_away_has_left_and_the_answer_did_not_break() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield data(SAID)
            await asyncio.sleep(0)

    usage = Usage(CHAT)
    app = StreamingResponse(endless(), media_type="text/event-stream")
    sent = asyncio.run(_through(app, [GONE], usage))
    assert sent[-1]["more_body"]
    assert (usage.status, usage.ended, usage.tokens()) == (200, "left", (None, None))


def test_an_answer_without_a_receiver_counts_as_left() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """As vLLM does where the client left before its answer."""
        await Request(scope, receive).body()
        assert (await receive())["type"] == "http.disconnect"
        await JSONResponse(None)(scope, receive, send)

    async def gone() -> Any:
        return messages.pop(0)

    async def nowhere(message: Any) -> None: ...

    usage, messages = Usage(CHAT), [REQUEST, GONE]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    asyncio.run(app(scope, *usage.around(gone, nowhere)))
    assert (usage.status, usage.ended) == (200, "left")


def test_a_disconnect_after_the_end_means_nothing() -> None:
    usage = streamed(CHATTED)
    usage.received(GONE)
    assert usage.ended == "whole"


def test_messages_pass_as_they_are() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked = await Request(scope, receive).json()
        await send(start())
        for content in (b"data: 1\n\n", memoryview(b"data: 2\n\n"), b""):
            await send({"type": "http.response.body", "body": content, "more_body": bool(content)})
        assert asked == {}

    usage = Usage(CHAT)
    sent = asyncio.run(_through(app, [REQUEST, GONE], usage))
    assert [message.get("body") for message in sent] == [None, b"data: 1\n\n", b"data: 2\n\n", b""]
    assert sent[0] == start()
    assert usage.ended == "whole"


def finished(why: str) -> bytes:
    return data({"choices": [{"delta": {"content": "x"}, "finish_reason": why}]}) + DONE


QUOTED = {"choices": [{"delta": {"content": 'it said "finish_reason": "length"'}, "finish_reason": "stop"}]}
INCOMPLETE = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("route", "content", "cut"),
    [
        (CHAT, CHATTED + finished("length"), True),
        (COMPLETIONS, finished("length"), True),
        (CHAT, CHATTED + finished("stop"), False),
        (CHAT, data(QUOTED) + DONE, False),
        (RESPONSES, RESPONDED, False),
        (RESPONSES, named("response.incomplete", response=INCOMPLETE), True),
    ],
)
def test_a_stream_that_ends_at_its_maximum_of_tokens_is_cut(route: str, content: bytes, cut: bool, pieces: int) -> None:
    assert streamed(content, route, pieces).cut == cut


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        ({"choices": [{"text": "x", "finish_reason": "length"}]}, True),
        ({"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}, True),
        ({"choices": [{"text": '"finish_reason": "length"', "finish_reason": "stop"}]}, False),
        (INCOMPLETE, True),
        ({"status": "completed", "incomplete_details": None}, False),
    ],
)
def test_a_body_that_ends_at_its_maximum_of_tokens_is_cut(answer: dict[str, Any], cut: bool) -> None:
    usage = Usage(CHAT)
    usage.sent(start("application/json"))
    usage.sent(body(json.dumps(answer).encode(), more=False))
    assert usage.cut == cut
