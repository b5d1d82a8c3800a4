"""Requests of an attacker who wants to break the server or to read another tenant's data."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.faults.asgi import Sent

INFERENCE = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
FIELDS = frozenset(
    {"suffix", "instructions", "max_tokens", "echo", "tools", "previous_response_id"}
    | {"id", "metric", "value", "patch", "tenant"}
)
"""Fields that are drawn on routes that do not know them. Whoever serves them allows these, so that more than names of
fields is tried."""
OTHERS = (
    "/v1/models",
    "/v1/edits",
    "/v1/edits/outcomes",
    "/v1/edits/answers",
    "/v1/edits/tenants",
    "/v1/edits/keys",
    "/v1/edits/rollouts",
    "/v1/edits/patches",
    "/v1/edits/jobs",
    "/v1/edits/audit",
    "/v1/edits/openapi.json",
    "/v1/edits/console",
    "/v1/edits/console/patches",
    "/v1/edits/console/sign-in",
    "/v1/edits/console/playground/answer",
    "/metrics",
    "/health",
    "/ping",
    "/version",
    "/invocations",
    "/inference/v1/generate",
    "/v1/load_lora_adapter",
    "/v1/realtime",
    "/",
    "",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "")
HEADERS = (
    b"authorization",
    b"x-tenant",
    b"x-user-id",
    b"x-session-id",
    b"x-request-id",
    b"x-vllm-edit-adapter",
    b"x-vllm-edit-admin",
    b"x-amzn-sagemaker-adapter-identifier",
    b"content-type",
    b"content-length",
    b"transfer-encoding",
    b"expect",
    b"host",
    b"cookie",
)


def texts(size: int = 30) -> st.SearchStrategy[str]:
    """Any text, also control characters; one in ten with half of a surrogate pair, which JSON can hold."""
    whole = st.text(st.characters(categories=("L", "N", "P", "S", "Z", "C")), max_size=size)
    half = st.sampled_from(["\ud83d", "\udc00", "\ude00\ud83d"])
    return st.one_of(*[whole] * 9, st.tuples(whole, half, whole).map(lambda parts: "".join(parts)[:size]))


def values(names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any JSON, with names of tenants and patches in it."""
    numbers = st.integers() | st.floats() | st.just(2**63) | st.just(-1)
    leaves = st.none() | st.booleans() | numbers | texts() | names
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(8), inner, max_size=4)
    )


def bodies(names: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Any bytes; any JSON; what the routes expect, with any values; nested deeper than any reader expects."""
    any_value = values(names)
    part = st.fixed_dictionaries(
        {}, optional={"type": st.sampled_from(["text", "input_text"]) | names, "text": any_value}
    )
    content = texts() | names | st.lists(part, max_size=3) | any_value
    roles = st.sampled_from(["user", "assistant", "system", "tool"]) | texts(8)
    turn = st.fixed_dictionaries({}, optional={"role": roles, "content": content, "tool_calls": any_value})
    turns = st.lists(turn, max_size=4) | any_value
    ids = st.lists(st.integers(-5, 2**70) | st.integers(32, 126), max_size=6)
    prompts = texts() | names | ids | st.lists(texts() | ids, max_size=3) | any_value
    fields = {
        "model": names | names | any_value,
        "prompt": prompts,
        "suffix": any_value,
        "messages": turns,
        "input": texts() | turns,
        "instructions": any_value,
        "user": texts() | any_value,
        "cache_salt": texts() | any_value,
        "max_tokens": any_value,
        "stream": any_value,
        "stream_options": any_value,
        "store": any_value,
        "previous_response_id": st.none() | any_value,
        "echo": any_value,
        "request_id": any_value,
        "id": any_value,
        "metric": any_value,
        "value": any_value,
        "patch": names,
        "tenant": names,
        "priority": st.integers() | any_value,
        "kv_transfer_params": any_value,
    }
    likely = {"model": names, "prompt": texts() | names, "messages": st.lists(turn, min_size=1, max_size=3)}
    made = (
        st.fixed_dictionaries({}, optional=fields)
        | st.fixed_dictionaries(likely, optional={key: fields[key] for key in fields.keys() - likely.keys()})
        | any_value
    )
    return st.binary(max_size=200) | made.map(_json) | made.map(_json) | _deep(names)


@st.composite
def _deep(draw: st.DrawFn, names: st.SearchStrategy[str]) -> bytes:
    """A field that is nested so deeply that a recursive reader or writer fails."""
    field = draw(
        st.sampled_from(["prompt", "messages", "input", "user", "cache_salt", "tools", "instructions", "model"])
    )
    opening, closing = draw(
        st.sampled_from([(b"[", b"]"), (b'{"content":', b"}"), (b'[{"role":"user","content":', b"}]")])
    )
    depth = draw(st.integers(1, 3000))
    body = {"model": draw(names), "prompt": "x", "input": "x", "messages": [{"role": "user", "content": "x"}]}
    body.pop(field, None)
    return _json(body)[:-1] + b', "%s": ' % field.encode() + opening * depth + b"1" + closing * depth + b"}"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def requests(names: st.SearchStrategy[str]) -> st.SearchStrategy[Sent]:
    """Without a key; `names` are of tenants and patches."""
    likely = st.tuples(st.just("POST"), st.sampled_from(INFERENCE))
    known = st.sampled_from((*INFERENCE, *OTHERS))
    ending = st.sampled_from(["", "/", "//", "?", "/..", "%2f"]) | names.map("/{}".format) | texts(12).map("/{}".format)
    path = st.tuples(known, ending, ending).map("".join) | _printable()
    other = st.tuples(st.sampled_from(METHODS) | _printable(), path)
    header = st.tuples(
        st.sampled_from(HEADERS) | st.from_regex(rb"[a-z0-9-]{1,20}", fullmatch=True),
        st.binary(max_size=40) | names.map(str.encode) | names.map(lambda name: b"Bearer " + name.encode()),
    ).filter(lambda one: not set(b"\r\n\0") & set(one[1]))
    headers = st.lists(header, max_size=5).map(tuple)
    return st.builds(
        lambda where, headers, body, query: Sent(*where, headers, body, query),
        likely | likely | other,
        headers,
        bodies(names),
        st.from_regex(rb"[!-~]{0,30}", fullmatch=True),  # servers refuse other bytes there themselves
    )


def _printable() -> st.SearchStrategy[str]:
    """Any text that a path or method can be: servers decode those, so no half pairs."""
    return st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
