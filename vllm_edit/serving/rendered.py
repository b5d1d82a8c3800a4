"""Collects the text that a request's prompt will contain, to count its tokens: turns and tools of a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vllm_edit.json_value import JSONValue
from vllm_edit.serving.bodies import CHAT, COMPLETIONS, Body, decoded

_TEXTS = ("content", "name", "refusal", "reasoning", "reasoning_content", "summary", "output", "input")
_CALLS = ("tool_calls", "function_call", "arguments")
"""Written as JSON, with the arguments of tool calls decoded."""


def rendered(route: str, body: Body) -> list[str]:
    """One text per completion prompt or per turn, and one for the tool definitions. Token ids are skipped."""
    if route == COMPLETIONS:
        prompt = body.get("prompt")
        return [item for item in (prompt if isinstance(prompt, list) else [prompt]) if isinstance(item, str)]
    turns = body.get("messages" if route == CHAT else "input")
    found = [_turn(turn) for turn in (turns if isinstance(turns, list) else [turns])]
    if route != CHAT and isinstance(instructions := body.get("instructions"), str):
        found.append(instructions)
    return found + [_json(body[key]) for key in ("chat_template_kwargs", "tools") if body.get(key)]


def _turn(turn: JSONValue) -> str:
    if not isinstance(turn, dict):
        return turn if isinstance(turn, str) else ""
    pieces = [text for key in _TEXTS for text in _strings(turn.get(key))]
    pieces += [_json(_with_arguments(key, turn[key])) for key in _CALLS if turn.get(key)]
    return "\n".join(pieces)


def _strings(content: JSONValue) -> Iterator[str]:
    """The text of a content, or the texts of its parts."""
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else []:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            yield from (part[key] for key in ("text", "refusal", "thinking") if isinstance(part.get(key), str))


def _json(value: JSONValue) -> str:
    """JSON as chat templates write it: some indent it, and none escapes letters."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=4)


def _with_arguments(key: str, value: JSONValue) -> JSONValue:
    """The value with the arguments of tool calls decoded from JSON, as vLLM passes them to the template."""
    if key == "arguments" and isinstance(value, str):
        return decoded(value)
    if isinstance(value, list):
        return [_with_arguments("", item) for item in value]
    return {name: _with_arguments(name, item) for name, item in value.items()} if isinstance(value, dict) else value
