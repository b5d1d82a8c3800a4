"""The generated text of an answer, as JSON or as a stream of events, on each route. Of several choices the first."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.serving.bodies import CHAT, COMPLETIONS, RESPONSES

EVENTS = "text/event-stream"


def text_of(answer: JSONValue) -> str | None:
    """The text of an answer of any route; None if it has none, as an error and a call of a tool."""
    if not isinstance(answer, dict):
        return None
    if (output := _objects(answer.get("output"))) is not None:
        found = [part.get("text") for item in output for part in _objects(item.get("content")) or ()]
        texts = [text for text in found if isinstance(text, str)]
        return "".join(texts) if texts else None
    choices = _objects(answer.get("choices"))
    if not choices:
        return None
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else choices[0].get("text")
    return text if isinstance(text, str) else None


def error_of(answer: JSONValue) -> str:
    """The message of an answer that is an error."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message[:200] if isinstance(message, str) else "no message"


def text_of_body(route: str, content_type: str, body: bytes) -> str | None:
    """The text of the whole body of a response; None if it has none."""
    if content_type == EVENTS:
        return _streamed(route, body)
    try:
        answer: JSONValue = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return text_of(answer)


def _streamed(route: str, body: bytes) -> str | None:
    pieces: list[str] = []
    for event in _events(body):
        piece: JSONValue = None
        if route == RESPONSES:
            piece = event.get("delta") if event.get("type") == "response.output_text.delta" else None
        elif route in (COMPLETIONS, CHAT):
            piece = _delta(event)
        if isinstance(piece, str):
            pieces.append(piece)
    return "".join(pieces) if pieces else None


def _delta(event: JSONObject) -> JSONValue:
    for choice in _objects(event.get("choices")) or ():
        if choice.get("index", 0) == 0:
            delta = choice.get("delta")
            return delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return None


def _events(body: bytes) -> Iterator[JSONObject]:
    for line in body.split(b"\n"):
        if line.startswith(b"data:"):
            try:
                event = json.loads(line.removeprefix(b"data:"))
            except (ValueError, RecursionError):  # [DONE]
                continue
            if isinstance(event, dict):
                yield event


def _objects(value: JSONValue) -> list[JSONObject] | None:
    """The objects of a list; None if it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else None
