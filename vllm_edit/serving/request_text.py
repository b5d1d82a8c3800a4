"""Collects the text of a request that decides which subjects it mentions. Pure functions on JSON.

/v1/completions        every prompt, and the suffix; token ids are decoded
/v1/chat/completions   every message of every role, tool calls and their results included
/v1/responses          `instructions` and every item of `input`
both of these          `chat_template_kwargs`, which a template may write into the prompt

One text per prompt or turn. A tool's arguments and results are usually JSON, and their escapes are decoded, because
many clients write letters as \\u6cd5. Tool definitions are excluded: a catalogue that names a city does not mention it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from vllm_edit.errors import EditError, Unanswerable
from vllm_edit.json_value import JSONValue
from vllm_edit.serving.bodies import CHAT, COMPLETIONS, Body, decoded, is_ids

Decode = Callable[[Sequence[int]], str]
"""Maps token ids to text; raises `Unanswerable` for ids that the tokenizer does not have."""

# Keys of turns and items with text, directly or nested. Other keys hold ids, roles, types and binary data.
_WITH_TEXT = frozenset(
    {"content", "text", "refusal", "reasoning", "reasoning_content", "summary", "tool_calls", "function"}
    | {"function_call", "thinking"}
)
_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_TOOLS = frozenset({"tool", "function"})
"""Roles whose content is a tool's result."""


def request_texts(route: str, body: Body, decode: Decode) -> list[str]:
    """The request's texts.

    Raises:
        EditError: the prompt has no text, such as embeddings.
        Unanswerable: there is no prompt, it is of no form that vLLM reads, or holds ids that are none.
    """
    if route == COMPLETIONS:
        return [*_prompts(body, decode), *_strings(body.get("suffix"))]
    turns = body.get("messages" if route == CHAT else "input")
    alone = () if route == CHAT else _strings(body.get("instructions"))
    given = _values(body.get("chat_template_kwargs"))
    return [*alone, *given, *(" ".join(_strings(turn)) for turn in (turns if isinstance(turns, list) else [turns]))]


def _values(value: JSONValue) -> Iterator[str]:
    """Every string in a JSON value, except field names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item)


def _prompts(body: Body, decode: Decode) -> list[str]:
    prompt = body.get("prompt")
    if body.get("prompt_embeds") is not None:
        raise EditError(
            "a patch with scope subject needs the prompt's text: expected prompt to be text, token ids, or a list of "
            "either, not embeddings"
        )
    if isinstance(prompt, str):
        return [prompt]
    if is_ids(prompt):
        return [decode(prompt)]
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) or is_ids(item) for item in prompt):
        return [item if isinstance(item, str) else decode(item) for item in prompt]
    raise Unanswerable("expected prompt to be text, token ids, or a list of either; it is missing or of another form")


def _strings(value: JSONValue, of_tool: bool = False) -> Iterator[str]:
    """Every string in a value, depth first. of_tool: the strings are a tool's arguments or results."""
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
            elif key in _WITH_TEXT:
                yield from _strings(item, of_tool)


def _data(text: str) -> Iterator[str]:
    """The strings of a JSON text with escapes; for any other text, the text with its escapes decoded."""
    value = decoded(text) if "\\" in text else text
    if isinstance(value, dict | list):
        yield from _all(value)
    elif value is text:
        yield _ESCAPES.sub(lambda letters: str(decoded(f'"{letters[0]}"')), text)
    else:
        yield value if isinstance(value, str) else text


def _all(value: JSONValue) -> Iterator[str]:
    """Every key and every value of JSON, including JSON nested in strings."""
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
