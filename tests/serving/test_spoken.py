"""All that the model will read of a request is heard, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_edit.errors import EditError
from vllm_edit.serving.spoken import spoken


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
        ("/v1/responses", {"input": "France", "instructions": "Rome", "metadata": {"text": "no"}}, ["Rome", "France"]),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"output": "b", "id": "c"}]},
            ["a", "b"],
        ),
    ],
)
def test_every_turn_is_heard_whoever_speaks(route: str, body: dict[str, Any], expected: list[str]) -> None:
    assert spoken(route, body, decode) == expected


@pytest.mark.parametrize("prompt", [None, [], 7, True, [True], ["a", 7], [[]], {"a": 1}])
def test_a_prompt_in_which_nothing_can_be_found_is_refused(prompt: Any) -> None:
    with pytest.raises(EditError, match="token ids"):
        spoken("/v1/completions", {"prompt": prompt}, decode)


def test_embeddings_are_refused_even_beside_a_prompt() -> None:
    with pytest.raises(EditError, match="embeddings"):
        spoken("/v1/completions", {"prompt": "a", "prompt_embeds": "AAAA"}, decode)
