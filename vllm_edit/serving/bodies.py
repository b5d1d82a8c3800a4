"""Request bodies: refuses and forces fields, and inserts IKE prefixes. Pure functions on parsed JSON.

/v1/completions        `prompt`, a string or a list of strings
/v1/chat/completions   the last user message's text
/v1/responses          `input`, a string or its last user item's text
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TypeGuard

from vllm_edit.errors import EditError, Unanswerable
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.names import shown
from vllm_edit.serving.sampling_limits import refuse_too_many_entries

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"

Body = JSONObject


class TooLarge(EditError):
    """A body that exceeds the server's limit."""


Wrap = Callable[[str], str]
"""Maps a prompt to the prompt with its prefix."""

# Fields that would reveal or cut the prompt, and with it the IKE prefix.
_REVEALING = (
    "echo",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "return_prompt_text",
    "return_token_offsets",
    "truncate_prompt_tokens",
    "enable_response_messages",
    "prompt_embeds",
    "documents",
    "chat_template",
)
# Fields of /v1/responses that access stored answers, including those of others.
_STORED = ("previous_response_id", "background", "conversation")
_TEXT_PARTS = ("text", "input_text")
_BITS = 63  # of a number, besides its sign


def refuse(route: str, body: Body) -> None:
    """Raise `EditError` for a body that is invalid in every mode."""
    if route == RESPONSES:
        for field in _STORED:
            if body.get(field):
                raise EditError(f"{field} is not served: answers are not stored; send the whole conversation as input")
    # vLLM fails on the next two instead of refusing them.
    constraint = body.get("structured_outputs")
    if constraint is not None and not isinstance(constraint, dict):
        raise EditError(f"structured_outputs must be an object, got {type(constraint).__name__}")
    if (wide := _wide(body)) is not None:
        raise EditError(f"{shown(wide)} is a number that does not fit into 64 bits; send a smaller one")
    refuse_too_many_entries(body)
    # vLLM applies an adapter to a base request if a part's type is the adapter's name (its default multimodal LoRAs).
    for part in parts(body.get("messages")):
        kind = part.get("type")
        if isinstance(kind, str) and "@" in kind:
            raise EditError(f"a content part of type {kind[:40]!r} does not exist; expected text, image_url, ...")


def force(route: str, body: Body, model: str, salt: str, request_id: str) -> None:
    """Set, in place, the fields that the router decides: model name, cache salt, request id and `store`."""
    body["model"], body["cache_salt"], body["request_id"] = model, salt, request_id
    if route == RESPONSES:
        body["store"] = False


def refuse_revealing(body: Body) -> None:
    """Raise `EditError` for a field that would reveal or cut an IKE prefix."""
    for field in _REVEALING:
        value = body.get(field)
        if value is not None and value is not False:
            raise EditError(f"{field} is not served in mode ike; leave it out, or use mode weights")


def refuse_too_many_ids(body: Body, context: int) -> None:
    """Raise `Unanswerable` if a prompt has more token ids than the model's context, unless the body truncates it."""
    prompt = body.get("prompt")
    if not isinstance(prompt, list) or body.get("truncate_prompt_tokens") is not None:
        return
    lists = [ids for ids in (prompt, *prompt) if isinstance(ids, list) and ids and isinstance(ids[0], int)]
    longest = max(map(len, lists), default=0)
    if longest > context:
        raise Unanswerable(f"a prompt has {longest} token ids, the model reads at most {context}; send fewer")


def refuse_too_many(body: Body, context: int, most_prompts: int) -> None:
    """Raise `EditError` for more prompts than vLLM accepts, or more turns and parts of turns than the model's context
    has tokens: no such request can be answered, and reading millions of parts delays all other requests."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) > most_prompts and isinstance(prompt[0], str | list):
        raise EditError(f"prompt is a list of {len(prompt)} prompts, at most {most_prompts} are served; send fewer")
    for field in ("messages", "input"):
        turns = body.get(field)
        if not isinstance(turns, list):
            continue
        contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
        count = len(turns) + sum(len(content) for content in contents if isinstance(content, list))
        if count > context:
            raise EditError(
                f"{field} has {count} turns and parts of turns, more than the {context} tokens that the model reads; "
                "send fewer"
            )


def insert(route: str, body: Body, wrap: Wrap) -> None:
    """Insert the IKE prefix in place.

    Raises:
        EditError: the body has no text for it (token ids, no user turn).
        Unanswerable: the body has no prompt at all, or none in the form that the route requires.
    """
    if route == COMPLETIONS:
        body["prompt"] = _wrap_prompt(body.get("prompt"), wrap)
    elif route == CHAT:
        _wrap_turn(_last_user(body.get("messages"), "messages"), wrap)
    elif isinstance(given := body.get("input"), str):
        body["input"] = wrap(given)
    else:
        _wrap_turn(_last_user(body.get("input"), "input"), wrap)


def decoded(text: str) -> JSONValue:
    """The value of a JSON text; the text itself if it is not JSON."""
    try:
        value: JSONValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def answer_tokens(body: Body, default: int) -> int:
    """Maximum number of answer tokens that the client requests, else `default`."""
    for field in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = body.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default


def _wide(body: Body) -> str | None:
    """The first number that vLLM cannot send to its engine: a field, or a value of a field's object. Deeper numbers
    stay in vLLM's server, as text: the schema of a tool may have any."""
    for name, value in body.items():
        values = {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
        for path, number in values.items():
            if isinstance(number, int) and number.bit_length() > _BITS:
                return path
    return None


def _wrap_prompt(prompt: JSONValue, wrap: Wrap) -> str | list[str]:
    if isinstance(prompt, str):
        return wrap(prompt)
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
        return [wrap(item) for item in prompt]
    if isinstance(prompt, list) and prompt and all(map(is_ids, prompt if isinstance(prompt[0], list) else [prompt])):
        raise EditError("mode ike needs prompts as text: expected a string or a list of strings, not token ids")
    raise Unanswerable(
        "mode ike needs prompts as text: expected a string or a list of strings, not an empty or another value"
    )


def _last_user(turns: JSONValue, field: str) -> Body:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Unanswerable(f"mode ike needs a user turn in {field}: expected a list of turns, not another value")
    for turn in reversed(turns):
        if isinstance(turn, dict) and turn.get("role") == "user":
            return turn
    raise EditError(f"mode ike needs a user turn in {field}; there is none")


def _wrap_turn(turn: Body, wrap: Wrap) -> None:
    content = turn.get("content")
    if isinstance(content, str):
        turn["content"] = wrap(content)
        return
    found = list(_text_parts(content))
    if not found:
        raise EditError("mode ike needs text in the last user turn; there is none")
    prompt = "".join(text for _, text in found)
    part, text = found[0]
    part["text"] = wrap(prompt).removesuffix(prompt) + text


def _text_parts(content: JSONValue) -> Iterator[tuple[Body, str]]:
    """Each part with text, and its text."""
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(text := part.get("text"), str):
            yield part, text


def is_ids(prompt: JSONValue) -> TypeGuard[list[int]]:
    """True for a prompt of token ids."""
    return isinstance(prompt, list) and bool(prompt) and all(type(item) is int for item in prompt)


def parts(turns: JSONValue) -> Iterator[Body]:
    """The content parts of all turns."""
    for turn in turns if isinstance(turns, list) else []:
        content = turn.get("content") if isinstance(turn, dict) else None
        yield from (part for part in (content if isinstance(content, list) else []) if isinstance(part, dict))
