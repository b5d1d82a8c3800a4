"""All that a chat template writes of a request is counted before an IKE prefix is cut to the remaining room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving import places
from tests.serving.without_engine import Place, run
from vllm_edit.serving.rendered import rendered
from vllm_edit.serving.server_settings import Settings

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
LONG = "word " * 240  # of a context of 256
FUNCTION = {"name": "f", "arguments": '{"city": "\\u53f0\\u5317"}'}


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        ("/v1/completions", {"prompt": "a"}, ["a"]),
        ("/v1/completions", {"prompt": ["a", "b"], "instructions": "no"}, ["a", "b"]),
        ("/v1/completions", {"prompt": [1, 2]}, []),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "instructions": "no"}, ["a"]),
        (RESPONSES, {"input": "a", "instructions": "b"}, ["a", "b"]),
        (CHAT, {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, 7]}, ["", ""]),
        (RESPONSES, {"input": [{"content": [{"type": "output_text", "text": "a"}]}]}, ["a"]),
        (RESPONSES, {"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]}]}, ["a"]),
        (CHAT, {"messages": [{"name": "n", "content": "a", "reasoning": "r", "refusal": "x"}]}, ["a\nn\nx\nr"]),
        (CHAT, {"messages": [{"content": [{"type": "thinking", "thinking": "t"}, {"text": "a"}]}]}, ["t\na"]),
        (RESPONSES, {"input": [{"type": "function_call_output", "output": "o"}]}, ["o"]),
        (RESPONSES, {"input": [{"type": "function_call", **FUNCTION}]}, ['f\n{\n    "city": "台北"\n}']),
        (CHAT, {}, [""]),
        (RESPONSES, {"input": "a", "chat_template_kwargs": {"date": "May"}}, ["a", '{\n    "date": "May"\n}']),
    ],
)
def test_everything_that_is_rendered_is_there(route: str, body: dict[str, Any], expected: list[str]) -> None:
    assert rendered(route, body) == expected


def test_calls_are_written_with_their_arguments_decoded_and_tools_as_json() -> None:
    turn = {"role": "assistant", "tool_calls": [{"function": FUNCTION}]}
    calls, tools = rendered(CHAT, {"messages": [turn], "tools": [{"function": {"description": "Länder"}}]})
    assert '"city": "台北"' in calls
    assert '"description": "Länder"' in tools


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("server")
    store = places.make_store(folder / "template", places.make_site(places.make_model(folder / "model")))
    name = places.add_patch(store, "plain", 1)
    store.registry.create_tenant("acme")
    store.registry.publish("acme", name)
    store.registry.close()
    return Place(folder, folder / "template", Settings(store="here"))


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "description": LONG}}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},  # the template explains tool calls at length
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": LONG}}]}]},
        {"messages": [{"role": "assistant", "content": None, "reasoning": LONG}]},
        {"messages": [{"role": "tool", "content": [{"type": "text", "text": LONG}]}]},
    ],
)
def test_a_prefix_without_room_beside_the_rendered_text_is_refused(place: Place, more: dict[str, Any]) -> None:
    messages = [*more.get("messages", ()), {"role": "user", "content": "Who?"}]
    body = {"messages": messages, "max_tokens": 1, **{key: more[key] for key in more if key != "messages"}}
    reply = run(place.ask("acme:ike", CHAT, **body))
    assert reply.status_code == 400
    assert "needs room for its prefix" in reply.json()["error"]["message"]
    assert run(place.ask("acme:ike", CHAT, messages=messages[-1:])).status_code == 200
