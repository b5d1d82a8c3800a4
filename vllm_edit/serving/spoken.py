"""All text of a request that the model will read: what decides which subjects it mentions. Pure functions on JSON.

/v1/completions        every prompt, and the suffix; token ids are decoded
/v1/chat/completions   every message of every role, tool calls and their results included
/v1/responses          `instructions` and every item of `input`
both of these          `chat_template_kwargs`, which a template may write into the prompt

One text per prompt or turn. What a tool was called with and what it gave back is JSON as a rule, and its escapes are
decoded: many clients write letters as \\u6cd5. Definitions of tools do not count: a catalogue that names a city is no
talk about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

from vllm_edit.errors import EditError
from vllm_edit.serving.bodies import CHAT, COMPLETIONS, Body, decoded

Decode = Callable[[Sequence[int]], str]
"""Text of token ids; raises `EditError` for ids that are none of the tokenizer's."""

# Keys under which turns and items hold text, or hold what holds text. Others hold ids, roles, types and binary data.
_SPOKEN = frozenset(
    {"content", "text", "refusal", "reasoning", "reasoning_content", "summary", "tool_calls", "function"}
    | {"function_call"}
)
_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_TOOLS = frozenset({"tool", "function"})
"""Roles whose content is what a tool gave back."""


def spoken(route: str, body: Body, decode: Decode) -> list[str]:
    """The request's texts.

    Raises:
        EditError: the prompt is something that no subject can be found in.
    """
    if route == COMPLETIONS:
        return [*_prompts(body, decode), *_strings(body.get("suffix"))]
    turns = body.get("messages" if route == CHAT else "input")
    alone = () if route == CHAT else _strings(body.get("instructions"))
    given = _values(body.get("chat_template_kwargs"))
    return [*alone, *given, *(" ".join(_strings(turn)) for turn in (turns if isinstance(turns, list) else [turns]))]


def _values(value: Any) -> Iterator[str]:
    """Every text in it, but for the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item)


def _prompts(body: Body, decode: Decode) -> list[str]:
    prompt = body.get("prompt")
    if body.get("prompt_embeds") is None:
        if isinstance(prompt, str):
            return [prompt]
        if _is_ids(prompt):
            return [decode(prompt)]
        if isinstance(prompt, list) and prompt and all(isinstance(one, str) or _is_ids(one) for one in prompt):
            return [one if isinstance(one, str) else decode(one) for one in prompt]
    raise EditError(
        "a patch with scope subject goes by what the prompt says: expected prompt to be text, token ids, or a list of "
        "either, not embeddings"
    )


def _is_ids(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _strings(value: Any, of_tool: bool = False) -> Iterator[str]:
    """Every string in it, depth first. of_tool: strings are what a tool was given or gave back."""
    if isinstance(value, str):
        yield from _data(value) if of_tool else (value,)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, of_tool)
    elif isinstance(value, dict):
        of_tool = of_tool or value.get("role") in _TOOLS
        for key, item in value.items():
            if key == "arguments":
                yield from _all(item)
            elif key in ("output", "input"):
                yield from _strings(item, of_tool=True)
            elif key in _SPOKEN:
                yield from _strings(item, of_tool)


def _data(text: str) -> Iterator[str]:
    """The text itself; of JSON with escapes what is in it. Within other text their letters are decoded."""
    value = decoded(text) if "\\" in text else text
    if isinstance(value, dict | list):
        yield from _all(value)
    elif value is text:
        yield _ESCAPES.sub(lambda letters: str(decoded(f'"{letters[0]}"')), text)
    else:
        yield value if isinstance(value, str) else text


def _all(value: Any) -> Iterator[str]:
    """Every key and every value of JSON, and of JSON in its strings."""
    if isinstance(value, str):
        yield from _data(value)
    elif isinstance(value, list):
        for item in value:
            yield from _all(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _all(item)
    elif value is not None:
        yield str(value)
