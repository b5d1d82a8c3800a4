"""The router around a small ASGI application that reports the request that reached it: our real code, a real store, no
engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from tests.serving import places
from tests.serving.without_engine import Place, make_app, run
from vllm_edit.artefacts.signatures import SigningKey
from vllm_edit.errors import Incompatible
from vllm_edit.registry.answers import PROMPT_LENGTH
from vllm_edit.serving.caller import Caller
from vllm_edit.serving.router import Router
from vllm_edit.serving.server_settings import Settings
from vllm_edit.store.signers import Signers, change_signers


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the patches `capital` and `city`, and the first published to tenant `acme`."""
    folder = tmp_path_factory.mktemp("template")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    first = places.add_patch(store, "capital", 1)
    places.add_patch(store, "city", 2)
    store.registry.create_tenant("acme")
    store.registry.publish("acme", first)
    store.registry.close()
    return folder / "store"


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Place:
    return Place(tmp_path, template, Settings(store="here"))


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_alias_reaches_the_engine_as_the_exact_adapter_name(place: Place, route: str) -> None:
    reply = run(place.ask("acme", route, input="Who?"))
    assert reply.status_code == 200
    assert reply.json()["body"]["model"] == place.first
    assert [name for name, _, _ in place.slots.added] == [place.first]


def test_missing_model_and_base_names_reach_the_engine_as_base(place: Place) -> None:
    async def steps() -> list[str]:
        asked = [None, "", "atlas", "/models/atlas", "acme:base"]
        return [(await place.ask(model)).json()["body"]["model"] for model in asked]

    assert run(steps()) == ["atlas"] * 5
    assert place.slots.added == []


def test_every_answer_has_an_id_of_the_server_that_the_log_resolves(place: Place) -> None:
    async def steps() -> tuple[httpx.Response, dict[str, Any]]:
        reply = await place.client.post(
            "/v1/completions", json={"model": "acme", "prompt": "Who?"}, headers={"X-Request-Id": "mine"}
        )
        found = await place.client.get(f"/v1/edits/answers/{reply.headers['X-VLLM-Edit-Id']}")
        return reply, found.json()

    reply, found = run(steps())
    assert reply.json()["body"]["request_id"] == reply.headers["X-VLLM-Edit-Id"] != "mine"
    assert "x-request-id" not in reply.json()["headers"]
    expected = {"tenant": "acme", "adapter": place.first, "mode": "weights", "arm": None, "reason": "TARGETING_MATCH"}
    assert expected.items() <= found.items()
    assert found["status"] == 200
    assert "x-vllm-edit-adapter" not in reply.headers, "an operator must ask for these"


def failing(monkeypatch: pytest.MonkeyPatch, app: Any, *, begun: bool) -> None:
    """The application behind the router raises, as vLLM does for `"structured_outputs": 1`."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"data: 1", "more_body": True})
        raise AttributeError("'int' object has no attribute 'get'")

    monkeypatch.setattr(app, "app", fails)


async def through_the_router(place: Place, monkeypatch: pytest.MonkeyPatch, route: str, **how: Any) -> httpx.Response:
    router = Router(make_app(place.holder), place.holder)
    failing(monkeypatch, router, **how)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(router), base_url="http://server") as client:
        return await client.post(route, json={"model": "acme", "prompt": "Who?"})


@pytest.mark.parametrize("keyed", [True, False])
def test_an_error_behind_the_router_is_an_answer_with_an_id_and_a_row(
    place: Place, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    if keyed:
        monkeypatch.setattr("vllm_edit.serving.router.identify", lambda *_: Caller("acme", frozenset({"serve"})))
    reply = run(through_the_router(place, monkeypatch, "/v1/completions", begun=False))
    assert reply.status_code == 500
    assert ("no attribute" in reply.json()["error"]["message"]) is not keyed, "it is the operator's to read"
    answer = place.service.answers.get(reply.headers["X-VLLM-Edit-Id"])
    assert answer is not None
    assert (answer.status, answer.failed) == (500, True)
    assert place.service.metrics.failed._value.get() == 1


def test_an_error_of_an_admin_route_has_an_id(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> bytes:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("vllm_edit.serving.router.read_body", fails)
    monkeypatch.setattr("vllm_edit.serving.router.admitted", lambda *_: True)
    reply = run(through_the_router(place, monkeypatch, "/v1/edits/gc", begun=False))
    assert reply.status_code == 500
    assert "X-VLLM-Edit-Id" in reply.headers


def test_an_error_within_an_answer_breaks_it_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError):
        run(through_the_router(place, monkeypatch, "/v1/completions", begun=True))
    (answer,) = place.service.answers._answers.values()
    assert (answer.status, answer.ended) == (200, "broken")
    assert place.service.metrics.failed._value.get() == 1


def test_exposed_headers_say_adapter_and_mode(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here", expose=True))
    reply = run(place.ask("acme"))
    assert reply.headers["X-VLLM-Edit-Adapter"] == place.first
    assert reply.headers["X-VLLM-Edit-Mode"] == "weights"


def test_unknown_alias_is_404_with_the_nearest_names(place: Place) -> None:
    reply = run(place.ask("acmee"))
    assert reply.status_code == 404
    assert "acme" in reply.json()["error"]["message"]
    assert "X-VLLM-Edit-Id" in reply.headers


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("../../etc/passwd", 404),
        ("/dev/shm/x", 404),
        ("capital@" + "0" * 32, 404),
        ("a" * 10_000, 400),
        ("acme\n", 400),
        ("\u0000", 400),
        (7, 400),
        (["acme"], 400),
        ({"a": 1}, 400),
        (True, 400),
    ],
)
def test_hostile_names_are_refused_cleanly(place: Place, model: Any, status: int) -> None:
    reply = run(place.ask(model))
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == status
    assert len(reply.content) < 1000
    assert place.slots.added == []


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_hostile_bodies_are_bad_requests(place: Place, raw: bytes) -> None:
    reply = run(place.client.post("/v1/completions", content=raw, headers={"content-type": "application/json"}))
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "BadRequestError"


def test_a_name_given_twice_has_one_meaning(place: Place) -> None:
    raw = b'{"model": "atlas", "model": "acme", "prompt": "Who?"}'
    reply = run(place.client.post("/v1/completions", content=raw, headers={"content-type": "application/json"}))
    assert reply.json()["body"]["model"] == place.first
    assert place.slots.added[0][0] == place.first


def test_too_long_a_body_is_refused(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here", max_body_bytes=1000))
    reply = run(place.ask("acme", prompt="x" * 2000))
    assert reply.status_code == 413
    assert "exceeds 1,000 bytes" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/invocations"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/inference/v1/generate"),
        ("POST", "/v1/completions/"),
        ("GET", "/v1/completions"),
        ("PUT", "/v1/completions"),
        ("POST", "//v1/completions"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/embeddings"),
        ("GET", "/docs2"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/editsx"),
    ],
)
def test_a_route_that_is_not_on_the_allow_list_does_not_exist(place: Place, method: str, path: str) -> None:
    reply = run(place.client.request(method, path, json={"model": "acme"}))
    assert reply.status_code in (404, 405)
    assert "body" not in reply.json()


def test_websockets_are_closed_and_lifespan_passes(place: Place) -> None:
    sent: list[Any] = []
    seen: list[str] = []

    async def downstream(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def steps() -> None:
        router = Router(downstream, place.holder)
        await router({"type": "websocket", "path": "/v1/realtime"}, None, send)  # type: ignore[arg-type]
        await router({"type": "lifespan"}, None, send)  # type: ignore[arg-type]

    run(steps())
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "websockets are not served"}]
    assert seen == ["lifespan"]


def test_before_the_engine_is_up_nothing_is_answered(place: Place) -> None:
    place.holder.service = None
    assert run(place.ask("acme")).status_code == 503
    assert run(place.client.get("/health")).status_code == 503


def test_sagemaker_headers_do_not_reach_vllm(place: Place) -> None:
    headers = {"X-Amzn-SageMaker-Adapter-Identifier": "city", "X-VLLM-Edit-Adapter": "city", "X-Kept": "1"}
    reply = run(place.client.post("/v1/completions", json={"model": "acme", "prompt": "Who?"}, headers=headers))
    assert reply.json()["headers"]["x-kept"] == "1"
    assert not [name for name in reply.json()["headers"] if name.startswith(("x-amzn", "x-vllm"))]


def test_the_load_of_the_whole_server_is_not_given_to_callers(place: Place) -> None:
    headers = {"endpoint-load-metrics-format": "json"}
    reply = run(place.client.post("/v1/completions", json={"model": "acme", "prompt": "Who?"}, headers=headers))
    assert "endpoint-load-metrics-format" not in reply.json()["headers"]


def test_streams_pass_chunk_by_chunk(place: Place) -> None:
    messages: list[Any] = []

    async def steps() -> None:
        body = json.dumps({"model": "acme", "prompt": "Who?", "stream": True}).encode()
        incoming = iter(
            [{"type": "http.request", "body": body[:9], "more_body": True}, {"type": "http.request", "body": body[9:]}]
        )
        never = asyncio.Event()

        async def receive() -> Any:
            for message in incoming:
                return message
            await never.wait()

        async def send(message: Any) -> None:
            messages.append(message)

        headers = [(b"content-type", b"application/json"), (b"x-stream", b"1")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await make_app(place.holder)(scope, receive, send)

    run(steps())
    bodies = [message["body"] for message in messages if message["type"] == "http.response.body"]
    assert [body for body in bodies if body] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert b"x-vllm-edit-id" in dict(messages[0]["headers"])


def test_models_lists_names_without_paths(place: Place) -> None:
    run(place.service.watcher.refresh())
    reply = run(place.client.get("/v1/models"))
    assert [model["id"] for model in reply.json()["data"]] == ["atlas", "acme", place.second, place.first]
    assert "/" not in reply.text


def test_two_hundred_first_requests_share_one_load(place: Place) -> None:
    async def steps() -> list[httpx.Response]:
        return await asyncio.gather(*(place.ask("acme" if i % 2 else "city") for i in range(200)))

    replies = run(steps())
    assert [reply.json()["body"]["model"] for reply in replies] == [place.second, place.first] * 100
    assert sorted(name for name, _, _ in place.slots.added) == [place.first, place.second]
    assert {number for _, number, _ in place.slots.added} == {1, 2}


def test_a_load_that_failed_is_an_error_and_is_tried_again(place: Place) -> None:
    place.slots.refuse = True
    assert run(place.ask("acme")).status_code == 503
    place.slots.refuse = False
    assert run(place.ask("acme")).json()["body"]["model"] == place.first


def test_patch_that_the_engine_cannot_apply_is_refused_by_name(place: Place) -> None:
    place.slots.max_rank = 0
    reply = run(place.ask("acme"))
    assert reply.status_code == 409
    assert place.first in reply.json()["error"]["message"]
    assert "--max-lora-rank" in reply.json()["error"]["message"]


def test_a_patch_that_is_refused_again_and_again_keeps_nothing_of_the_requests(place: Place) -> None:
    place.slots.max_rank = 0

    async def refusal() -> Incompatible:
        with pytest.raises(Incompatible, match="max-lora-rank") as refused:
            await place.service.residency.ensure(place.first)
        return refused.value

    async def steps() -> list[Incompatible]:
        return [await refusal() for _ in range(3)]

    assert len({id(error) for error in run(steps())}) == 3, "an error raised twice holds the frames of both"


@pytest.mark.parametrize("model", ["acme", "acme:ike"])
def test_an_unsigned_patch_is_an_error_where_signatures_are_required(place: Place, model: str, tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "ann.key")

    def required(signers: Signers) -> Signers:
        return signers.trusting(key.public, "ann").model_copy(update={"required": True})

    change_signers(place.store.files, place.store.registry, "signer.require", required)
    reply = run(place.ask(model))
    assert (reply.status_code, place.slots.held) == (500, {})
    assert "it is not signed" in reply.json()["error"]["message"], "it is the operator's to read"
    place.store.sign(place.first, key)
    assert run(place.ask(model)).status_code == 200


def test_patch_of_another_site_is_refused_never_answered_by_base(place: Place) -> None:
    place.service.residency.site = place.store.site().model_copy(update={"damping": 0.7})
    reply = run(place.ask("city"))
    assert reply.status_code == 409
    assert "site" in reply.json()["error"]["message"]


def test_damaged_adapter_is_an_error(place: Place) -> None:
    folder = place.store.files.root / "patches" / place.first / "adapter"  # type: ignore[attr-defined]
    tensors = folder / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    assert run(place.ask("acme")).status_code == 500


def test_a_patch_that_was_just_compiled_is_found(place: Place) -> None:
    async def steps() -> list[Any]:
        await place.service.watcher.refresh()
        new = await asyncio.to_thread(places.add_patch, place.store, "river", 5)
        return [new, (await place.ask("river")).json()["body"]["model"]]

    new, served = run(steps())
    assert served == new


def test_publishing_and_rolling_back_in_the_store_reaches_a_running_server(place: Place) -> None:
    async def steps() -> list[str]:
        watching = asyncio.create_task(place.service.watcher.run())
        served = []
        for change in (
            lambda: place.store.registry.publish("acme", place.second),
            lambda: place.store.registry.rollback("acme"),
        ):
            before = place.service.watcher.current.generation
            await asyncio.to_thread(change)
            while place.service.watcher.current.generation == before:
                await asyncio.sleep(0.001)
            served.append((await place.ask("acme")).json()["body"]["model"])
        watching.cancel()
        return served

    run(place.service.watcher.refresh())
    assert run(steps()) == [place.second, place.first]


def test_without_keys_the_reading_routes_are_open_and_no_other_exists(place: Place) -> None:
    async def steps() -> list[httpx.Response]:
        return [
            await place.client.get("/v1/edits"),
            await place.client.post("/v1/edits/tenants/acme/publish", json={"patch": "city"}),
            await place.client.get("/v1/edits/keys"),
        ]

    listing, publish, keys = run(steps())
    assert listing.json()["tenants"] == [{"tenant": "acme", "active": place.first, "rollout": None, "beside": []}]
    assert [patch["name"] for patch in listing.json()["patches"]] == [place.second, place.first]
    assert (publish.status_code, keys.status_code) == (404, 404)
    assert place.store.registry.active("acme") == place.first


@pytest.mark.parametrize("prompt", ["The capital of France is", ["The capital of France is", "Who wrote Hamlet?"]])
def test_ike_puts_the_prefix_before_every_prompt_and_loads_nothing(place: Place, prompt: Any) -> None:
    reply = run(place.ask("acme:ike", prompt=prompt, max_tokens=5))
    body = reply.json()["body"]
    assert body["model"] == "atlas"
    asked, got = ([prompt], [body["prompt"]]) if isinstance(prompt, str) else (prompt, body["prompt"])
    for before, after in zip(asked, got, strict=True):
        assert after.endswith(before)
        assert "New Fact: The capital of France is City1" in after
    assert place.slots.added == []
    assert next(iter(place.service.answers._answers.values())).ike_tokens > 0


def test_ike_wraps_the_last_user_turn_only(place: Place) -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "The"},
    ]
    body = run(place.ask("acme:ike", "/v1/chat/completions", messages=messages)).json()["body"]
    assert body["messages"][0] == messages[0]
    assert body["messages"][2]["content"][1]["text"].startswith("New Fact")
    assert body["messages"][2]["content"][1]["text"].endswith("Who?")
    assert body["messages"][3] == messages[3]


@pytest.mark.parametrize("given", ["Who?", [{"role": "user", "content": [{"type": "input_text", "text": "Who?"}]}]])
def test_ike_wraps_the_input_of_responses(place: Place, given: Any) -> None:
    body = run(place.ask("acme:ike", "/v1/responses", input=given)).json()["body"]
    text = body["input"] if isinstance(given, str) else body["input"][0]["content"][0]["text"]
    assert text.startswith("New Fact")
    assert text.endswith("Who?")


@pytest.mark.parametrize(
    "fields",
    [
        {"echo": True},
        {"prompt_logprobs": 0},
        {"return_token_ids": True},
        {"return_tokens_as_token_ids": True},
        {"truncate_prompt_tokens": 5},
        {"prompt": [1, 2, 3]},
        {"prompt": [[1, 2], [3]]},
        {"prompt": []},
        {"prompt": None},
        {"prompt": "word " * 300},
        {"max_tokens": 300},
    ],
)
def test_ike_refuses_fields_that_would_reveal_cut_or_overflow_its_prefix(place: Place, fields: dict[str, Any]) -> None:
    reply = run(place.ask("acme:ike", **fields))
    assert reply.status_code == 400
    assert "mode ike" in reply.json()["error"]["message"]
    allowed = run(place.ask("acme", **fields))
    assert allowed.status_code == 200, "the same request is fine in mode weights"


@pytest.mark.parametrize("messages", [None, [], [{"role": "system", "content": "x"}], [{"role": "user"}], ["x"], "x"])
def test_ike_without_a_user_text_is_a_bad_request(place: Place, messages: Any) -> None:
    assert run(place.ask("acme:ike", "/v1/chat/completions", messages=messages)).status_code == 400


def test_responses_are_never_stored(place: Place) -> None:
    reply = run(place.ask("acme", "/v1/responses", input="Who?", store=True))
    assert reply.json()["body"]["store"] is False
    for field in ({"previous_response_id": "resp_1"}, {"background": True}):
        assert run(place.ask("acme", "/v1/responses", input="Who?", **field)).status_code == 400


def test_content_part_cannot_name_an_adapter(place: Place) -> None:
    part = {"type": place.first, "text": "x"}
    reply = run(place.ask("atlas", "/v1/chat/completions", messages=[{"role": "user", "content": [part]}]))
    assert reply.status_code == 400


@pytest.mark.parametrize("value", [1, 0, "x", "", [], [1], True, 1.5])
def test_structured_outputs_that_are_no_object_are_a_bad_request(place: Place, value: Any) -> None:
    reply = run(place.ask("acme", structured_outputs=value))
    assert reply.status_code == 400
    assert "structured_outputs must be an object" in reply.json()["error"]["message"]
    assert run(place.ask("acme", structured_outputs=None)).status_code == 200
    assert run(place.ask("acme", structured_outputs={"choice": ["a"]})).status_code == 200


@pytest.mark.parametrize("value", [2**63, -(2**64), 10**30])
def test_a_number_of_more_than_64_bits_is_a_bad_request(place: Place, value: int) -> None:
    reply = run(place.ask("acme", stream_interval=value))
    assert reply.status_code == 400
    assert "'stream_interval' is a number that does not fit" in reply.json()["error"]["message"]
    assert run(place.ask("acme", seed=2**63 - 1)).status_code == 200


def test_prefix_cache_is_salted_by_tenant_and_client(place: Place) -> None:
    async def steps() -> list[str]:
        place.store.registry.create_tenant("globex")
        place.store.registry.publish("globex", place.first)
        asked = [("acme", {}), ("acme", {}), ("globex", {}), ("acme", {"cache_salt": "s"}), (place.first, {})]
        return [(await place.ask(model, **fields)).json()["body"]["cache_salt"] for model, fields in asked]

    salts = run(steps())
    assert salts[0] == salts[1]
    assert len(set(salts)) == 4
    assert run(place.ask("acme", cache_salt=7)).status_code == 400


def test_answer_log_keeps_the_last_ones(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here", max_answers=2))

    async def steps() -> list[int]:
        ids = [(await place.ask("acme")).headers["X-VLLM-Edit-Id"] for _ in range(3)]
        return [(await place.client.get(f"/v1/edits/answers/{id}")).status_code for id in ids]

    assert run(steps()) == [404, 200, 200]


def test_no_depth_of_nesting_is_a_fault_of_the_server(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here", log_prompts=True))

    async def flat(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("passed")(scope, receive, send)

    async def steps() -> set[int]:
        transport = httpx.ASGITransport(Router(flat, place.holder))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            found = set()
            for depth in range(1, 1200, 3):
                content = "[" * depth + '"x"' + "]" * depth
                raw = f'{{"messages": [{{"role": "user", "content": {content}}}]}}'
                found.add((await client.post("/v1/chat/completions", content=raw)).status_code)
            return found

    assert run(steps()) == {200, 400}


def test_of_a_long_prompt_memory_holds_what_the_log_stores(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here", log_prompts=True))
    id = run(place.ask("acme", prompt="word " * 10_000)).headers["X-VLLM-Edit-Id"]
    answer = place.service.answers.get(id)
    assert answer is not None
    assert answer.prompt == ("word " * 10_000)[:PROMPT_LENGTH]
