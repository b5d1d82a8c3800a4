"""The request fields that a tenant may send to vLLM: an allow-list per route.

A tenant may send the public fields of OpenAI's API, and those of vLLM that affect only its own prompt and answer. The
other fields of vLLM steer the engine for everyone (`priority`), name machines and caches (`kv_transfer_params`), reach
plugins (`vllm_xargs`), or hold text that `request_text` does not read (`documents`). Fields that a later vLLM adds are
refused until they are listed here. An operator may allow more by name (`Settings.allowed_fields`).
"""

from __future__ import annotations

from collections.abc import Collection

from vllm_edit.errors import EditError
from vllm_edit.names import shown
from vllm_edit.serving.bodies import CHAT, COMPLETIONS, RESPONSES, Body, parts

_MOST_SHOWN = 8  # refused fields that one message names
_OF_TEMPLATES = frozenset({"documents", "chat_template"})
"""Fields that vLLM also reads in `chat_template_kwargs`."""
UUID = "uuid"
"""Field of a content part that names a picture cached from an earlier request, which may be another tenant's."""

# Forced by the router (`bodies.force`), or text that vLLM reads only on its own route.
_EVERYWHERE = frozenset({"model", "cache_salt", "request_id", "store", "user", "prompt", "messages", "input"})
_SAMPLING = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "logit_bias"}
    | {"frequency_penalty", "presence_penalty", "repetition_penalty", "structured_outputs"}
    | {"skip_special_tokens", "include_stop_str_in_output", "stream", "stream_options"}
)
_OF_CHATS = frozenset(
    {"tools", "tool_choice", "parallel_tool_calls", "top_logprobs", "metadata", "service_tier", "include_reasoning"}
    | {"moderation", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"}
    | {"chat_template_kwargs"}
)
_OF_SAMPLED = frozenset(
    {"n", "logprobs", "max_tokens", "echo", "response_format", "use_beam_search", "length_penalty", "min_tokens"}
    | {"spaces_between_special_tokens", "truncate_prompt_tokens", "truncation_side", "allowed_token_ids", "bad_words"}
    | {"prompt_logprobs", "logprob_token_ids", "add_special_tokens", "repetition_detection", "thinking_token_budget"}
    | {"return_tokens_as_token_ids", "return_token_ids", "return_token_offsets", "stream_interval"}
)
ALLOWED = {
    COMPLETIONS: _EVERYWHERE | _SAMPLING | _OF_SAMPLED | {"suffix", "best_of"},
    CHAT: (_EVERYWHERE | _SAMPLING | _OF_SAMPLED | _OF_CHATS)
    | {"max_completion_tokens", "reasoning_effort", "verbosity", "modalities", "audio", "prediction"}
    | {"functions", "function_call", "web_search_options"}
    | {"add_generation_prompt", "continue_final_message", "return_prompt_text"},
    RESPONSES: (_EVERYWHERE | _SAMPLING | _OF_CHATS)
    | {"instructions", "include", "max_output_tokens", "max_tool_calls", "reasoning", "text", "truncation"}
    | {"background", "conversation", "previous_response_id"}  # refused by `bodies.refuse` unless they are false
    | {"context_management", "background_options", "access_programs", "image", "enable_response_messages"},
}
"""Route → fields that a tenant may send."""

HEADERS = {
    b"x-vllm-priority": "priority",
    b"x-data-parallel-rank": "data_parallel_rank",
    b"x-session-id": "session_id",
}
"""Headers that vLLM reads as a field → the field's name. A tenant's header needs the same permission."""


class FieldsRefused(EditError):
    """A body with fields that its sender may not use; `first` is one of them."""

    def __init__(self, message: str, first: str) -> None:
        self.first = first
        super().__init__(message)


def refuse(route: str, body: Body, allowed: Collection[str]) -> None:
    """Raise `FieldsRefused` for fields on no list. allowed: more fields, by the operator's settings."""
    found = [name for name in body if name not in ALLOWED[route] and name not in allowed]
    if isinstance(given := body.get("chat_template_kwargs"), dict):
        found += [name for name in given if name in _OF_TEMPLATES and name not in allowed]
    turns = [*parts(body.get("messages")), *parts(body.get("input"))]
    if UUID not in allowed and any(UUID in part for part in turns):
        found.append(UUID)
    if found:
        named = ", ".join(shown(name) for name in found[:_MOST_SHOWN])
        more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        raise FieldsRefused(
            f"{named}{more}: not served on {route}; leave out what you do not need, or ask the server's operator to "
            "allow it",
            shown(found[0])[1:-1],
        )


def withheld_headers(allowed: Collection[str]) -> tuple[str, ...]:
    """Headers of a tenant that must not reach vLLM."""
    return tuple(header.decode() for header, field in HEADERS.items() if field not in allowed)
