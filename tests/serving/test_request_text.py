"""Exactly the text that the model will read of a request is searched for subjects."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_edit.errors import EditError, Unanswerable
from vllm_edit.serving.request_text import request_texts


def decode(ids: Any) -> str:
    return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        ("/v1/completions", {"prompt": "a"}, ["a"]),
        ("/v1/completions", {"prompt": ["a", "b"], "suffix": "c"}, ["a", "b", "c"]),
        ("/v1/completions", {"prompt": [72, 105]}, ["Hi"]),
        ("/v1/completions", {"prompt": [[72], "x", [105, 33]]}, ["H", "x", "i!"]),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "system", "content": "be France"},
                    {"role": "user", "content": [{"type": "text", "text": "New"}, {"type": "text", "text": "York"}]},
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:France"}}]},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"function": {"arguments": '{"q": "Rome"}'}}],
                    },
                    {"role": "tool", "tool_call_id": "Oslo", "content": "Egypt"},
                ],
                "tools": [{"type": "function", "function": {"description": "such as Berlin"}}],
                "user": "Japan",
            },
            ["be France", "New York", "", '{"q": "Rome"}', "Egypt"],
        ),
        ("/v1/chat/completions", {}, [""]),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "Rome?"}]}]},
            ["Rome?"],
        ),
        (
            "/v1/chat/completions",
            {"messages": [], "chat_template_kwargs": {"bos_token": "Rome ", "think": False, "of": [{"a": "Oslo"}]}},
            ["Rome ", "Oslo"],
        ),
        ("/v1/responses", {"input": "a", "chat_template_kwargs": {"date": "May"}}, ["May", "a"]),
        ("/v1/responses", {"input": "a", "chat_template_kwargs": None}, ["a"]),
        ("/v1/responses", {"input": "France", "instructions": "Rome", "metadata": {"text": "no"}}, ["Rome", "France"]),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"output": "b", "id": "c"}]},
            ["a", "b"],
        ),
    ],
)
def test_every_turn_of_every_role_is_read(route: str, body: dict[str, Any], expected: list[str]) -> None:
    assert request_texts(route, body, decode) == expected


def call(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (call(r'{"country": "\u6cd5\u570b"}'), "country 法國"),
        (call({"country": "法國", "of": ["Rome", 1984, None]}), "country 法國 of Rome 1984"),
        (call(r'{"a": "New\nYork"}'), "a New\nYork"),
        (call(r'{"cut \u6cd5'), '{"cut 法'),
        ({"role": "tool", "content": r'Found: {"city": "\u53f0\u5317"}'}, 'Found: {"city": "台北"}'),
        (
            {"role": "tool", "content": '{"city": "\\u53f0"}\n{"city": "\\u5317 \\ud83d\\ude42"}'},
            '{"city": "台"}\n{"city": "北 🙂"}',
        ),
        (call("[" * 100_000 + "\\"), "[" * 100_000 + "\\"),
        ({"role": "assistant", "function_call": {"arguments": r'["\u6cd5"]'}}, "法"),
        ({"role": "tool", "content": r'{"city": "\u53f0\u5317"}'}, "city 台北"),
        ({"role": "tool", "content": [{"type": "text", "text": r'"\u53f0\u5317"'}]}, "台北"),
        ({"role": "tool", "content": r'{"text": "{\"city\": \"\\u53f0\"}"}'}, "text city 台"),
        ({"role": "user", "content": r"\u53f0\u5317"}, r"\u53f0\u5317"),
        ({"type": "function_call", "arguments": r'{"c": "\u6cd5"}', "call_id": "Oslo"}, "c 法"),
        ({"type": "function_call_output", "output": r'{"c": "\u6cd5"}'}, "c 法"),
        ({"type": "function_call_output", "output": [{"type": "input_text", "text": r'["\u6cd5"]'}]}, "法"),
        ({"type": "custom_tool_call", "input": "France"}, "France"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses"])
def test_the_json_of_tools_is_decoded(route: str, turn: dict[str, Any], expected: str) -> None:
    assert request_texts(route, {"messages": [turn], "input": [turn]}, decode)[-1] == expected


@pytest.mark.parametrize("prompt", [None, [], 7, True, [True], ["a", 7], [[]], {"a": 1}])
def test_a_prompt_in_which_nothing_can_be_found_is_refused(prompt: Any) -> None:
    with pytest.raises(Unanswerable, match="token ids"):
        request_texts("/v1/completions", {"prompt": prompt}, decode)


def test_embeddings_are_refused_even_beside_a_prompt() -> None:
    with pytest.raises(EditError, match="embeddings") as refused:
        request_texts("/v1/completions", {"prompt": "a", "prompt_embeds": "AAAA"}, decode)
    assert not isinstance(refused.value, Unanswerable), "an arm with scope all answers it"
