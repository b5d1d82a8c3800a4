"""Half of a surrogate pair is a 400 in OpenAI's form, with an id and a row in the log, on every route and in every
mode."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.faults.asgi import Sent, send
from tests.serving import places
from tests.serving.without_engine import Place, run, shared_app
from vllm_edit.serving.server_settings import Settings

ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
MODELS = ("acme", "acme:ike", "acme:base", "acme:weights", "plain", "plain:ike", "atlas", None)
HALF = "Where is half \ud83d of France?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A server of a patch with scope subject, which `acme` is served, and of one with scope all."""
    folder = tmp_path_factory.mktemp("server")
    store = places.make_store(folder / "template", places.make_site(places.make_model(folder / "model")))
    places.add_patch(store, "plain", 1)
    world = places.save_accepted(store, places.scoped_patch(store.site(), "world", [("France",), ("Japan",)]))
    store.registry.create_tenant("acme")
    store.registry.publish("acme", world)
    store.registry.close()
    return Place(folder, folder / "template", Settings(store="here", log_prompts=True))


def asking(route: str, text: Any) -> dict[str, Any]:
    if route == "/v1/completions":
        return {"prompt": text}
    return {"messages" if "chat" in route else "input": [{"role": "user", "content": text}]}


async def asked(place: Place, route: str, raw: bytes) -> tuple[httpx.Response, Any]:
    """The answer, and its row in the log."""
    reply = await place.client.post(route, content=raw, headers={"content-type": "application/json"})
    answer = place.service.answers.get(reply.headers["X-VLLM-Edit-Id"])
    await place.service.answers.flush()
    return reply, answer


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_and_mode_refuses_half_a_pair(place: Place, route: str, model: str | None) -> None:
    named = {} if model is None else {"model": model}
    reply, answer = run(asked(place, route, json.dumps({**asking(route, HALF), **named}).encode()))
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "BadRequestError"
    assert "half of a surrogate pair" in reply.json()["error"]["message"]
    assert answer is not None
    assert (answer.status, answer.ended) == (400, "refused")
    assert place.service.store.registry.answers.find(answer.id).status == 400
    assert place.slots.added == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (rb'{"prompt": "\ud83d"}', "'prompt' has half"),
        (rb'{"prompt": "\udE00\uD83D"}', "'prompt' has half"),
        (b'{"prompt": "\xed\xa0\xbd"}', "'prompt' has half"),
        ('{"prompt": "\\ud83d"}'.encode("utf-16"), "'prompt' has half"),
        (rb'{"prompt": ["x", "\ud83d"]}', "'prompt.1' has half"),
        (rb'{"prompt": "x", "user": "\ud83d"}', "'user' has half"),
        (rb'{"prompt": "x", "\ud83d": 1}', "'\\ud83d' has half"),
        (rb'{"prompt": "x", "stop": {"a\ud83d": 1}}', "'stop.a\\ud83d' has half"),
    ],
)
def test_half_a_pair_is_found_however_it_is_written(place: Place, raw: bytes, message: str) -> None:
    reply, answer = run(asked(place, "/v1/completions", raw[:-1] + b', "model": "acme"}' if raw[:1] == b"{" else raw))
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]
    assert answer is not None


@pytest.mark.parametrize("arguments", ['{"city": "\\ud83d"}', "\ud83d"])
def test_half_a_pair_in_a_tool_call_is_found(place: Place, arguments: str) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "f", "arguments": arguments}}
    turns = [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "x"}]
    reply, _ = run(asked(place, ROUTES[1], json.dumps({"model": "acme", "messages": turns}).encode()))
    assert reply.status_code == 400
    assert "messages.0.tool_calls.0.function.arguments" in reply.json()["error"]["message"]


@pytest.mark.parametrize("text", ["\U0001f600", "\\ud83d", "\\\\ud83d\U0001f600"])
def test_whole_pairs_and_lookalikes_of_half_a_pair_pass(place: Place, text: str) -> None:
    reply = run(place.ask("acme:base", prompt=text))
    assert reply.status_code == 200
    assert reply.json()["body"]["prompt"] == text


@pytest.mark.parametrize("model", ["\ud83d", "acme\udc00", "acme:\ud83d"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_name_with_half_a_pair_is_refused_in_openais_form(place: Place, route: str, model: str) -> None:
    raw = json.dumps({**asking(route, "x"), "model": model}).encode()
    reply = run(place.client.post(route, content=raw, headers={"content-type": "application/json"}))
    assert reply.status_code in (400, 404)
    assert reply.json()["error"]["message"]
    assert reply.headers["X-VLLM-Edit-Id"]


def test_half_a_pair_spelled_only_in_a_tools_result_is_text_to_the_model(place: Place) -> None:
    turns = [{"role": "tool", "tool_call_id": "1", "content": r'{"of": "France", "cut": "\ud83d"}'}]
    reply, answer = run(asked(place, ROUTES[1], json.dumps({"model": "acme", "messages": turns}).encode()))
    assert reply.status_code == 200
    assert answer.subjects == ("France",)
    assert place.service.store.registry.answers.find(answer.id).status == 200


@pytest.mark.parametrize("path", ["/v1/edits/answers/\ud83d/", "/v1/edits/tenants/\udc00", "/\ud83d"])
def test_a_path_with_half_a_pair_is_refused_like_a_body(place: Place, path: str) -> None:
    """A trailing slash would be redirected, and no header can hold such an address."""
    reply = run(send(shared_app(place.holder), Sent("GET", path, (), b"")))
    assert reply.status == 400
    assert "'path' has half of a surrogate pair" in json.loads(reply.content)["error"]["message"]
