"""The body with which a request is repeated."""

from __future__ import annotations

import json

from vllm_edit.serving.bodies import RESPONSES, Body, parts

_OF_STREAMS = ("stream", "stream_options", "stream_interval")
_OF_TEXT = ("text", "input_text", "output_text", "refusal")


def shadow_body(route: str, raw: bytes) -> Body | None:
    """The body of a request that is repeated, not streamed; None for a request that is not.

    Only a request with one prompt and one answer is repeated, because more would cost more. A request is not repeated
    if it would reach beyond this server a second time: by a part that may be an address (a picture), or by a tool that
    a server calls itself.
    """
    body = json.loads(raw)
    if not isinstance(body, dict) or _many(body) or _reaching(route, body):
        return None
    return {name: value for name, value in body.items() if name not in _OF_STREAMS}


def is_greedy(body: Body) -> bool:
    """True for temperature 0: without noise of the computation, an arm repeats its answer."""
    temperature = body.get("temperature")
    return isinstance(temperature, int | float) and temperature == 0


def _many(body: Body) -> bool:
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and len(prompt) > 1 and isinstance(prompt[0], str | list)
    more = any(body.get(field) not in (None, 1) for field in ("n", "best_of"))
    return several or more or bool(body.get("use_beam_search"))


def _reaching(route: str, body: Body) -> bool:
    found = [part.get("type") for field in ("messages", "input") for part in parts(body.get(field))]
    if any(kind not in _OF_TEXT for kind in found):
        return True
    tools = body.get("tools")
    return (
        route == RESPONSES
        and isinstance(tools, list)
        and any(not isinstance(tool, dict) or tool.get("type") != "function" for tool in tools)
    )
