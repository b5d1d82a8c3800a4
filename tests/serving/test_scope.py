"""Scoped patches through the router, over a real store, without an engine: a request gets exactly the subjects that it
mentions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.serving import places
from tests.serving.without_engine import Place, run
from vllm_edit.serving.server_settings import Settings

NAMES = [("France", "French Republic"), ("Japan",), ("New York",), ("York",), ("台北",), ("台北101",)]
NAMES += [(f"Land{number}",) for number in range(6)]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose newest patch `world` has scope subject, published to `acme`; `plain` has scope all."""
    folder = tmp_path_factory.mktemp("template")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    places.add_patch(store, "plain", 1)
    world = places.save_accepted(store, places.scoped_patch(store.site(), "world", NAMES))
    store.registry.create_tenant("acme")
    store.registry.publish("acme", world)
    store.registry.close()
    return folder / "store"


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Place:
    return Place(tmp_path, template, Settings(store="here"))


async def served(place: Place, prompt: Any, model: str = "acme") -> dict[str, Any]:
    """The body that reached the engine, and the answer's record."""
    reply = await place.ask(model, prompt=prompt)
    assert reply.status_code == 200, reply.text
    found = await place.client.get(f"/v1/edits/answers/{reply.headers['X-VLLM-Edit-Id']}")
    return {**found.json(), "body": reply.json()["body"]}


def test_a_request_gets_the_adapter_of_exactly_the_subjects_that_it_mentions(place: Place) -> None:
    async def steps() -> list[Any]:
        prompts = ["the FRENCH republic", "France?", "Japan", "Japan and France", "France, Japan"]
        return [await served(place, prompt) for prompt in prompts]

    alias, france, japan, both, again = run(steps())
    members = place.store.manifest(place.second).members
    assert france["body"]["model"] == alias["body"]["model"] == members[0]
    assert japan["adapter"] == japan["body"]["model"] == members[1]
    assert both["body"]["model"] == again["body"]["model"]
    assert both["subjects"] == ["France", "Japan"]
    assert both["groups"] == [0, 1]
    assert both["patch"] == place.second
    assert [name for name, _, _ in place.slots.added] == [members[0], members[1], both["adapter"]]
    assert len({number for _, number, _ in place.slots.added}) == 3


def test_a_request_without_a_subject_is_the_bases_with_the_bases_cached_prompts(place: Place) -> None:
    async def steps() -> tuple[dict[str, Any], dict[str, Any]]:
        return await served(place, "Yorkshire"), await served(place, "Yorkshire", "acme:base")

    out, base = run(steps())
    assert place.slots.added == []
    assert out["body"]["model"] == "atlas"
    assert (out["mode"], out["adapter"], out["reason"]) == ("weights", None, "NO_SUBJECT")
    assert (out["subjects"], out["groups"], out["patch"]) == ([], [], place.second)
    assert out["body"]["cache_salt"] == base["body"]["cache_salt"]


def test_scope_all_is_as_before(place: Place) -> None:
    found = run(served(place, "nobody", "plain"))
    assert found["adapter"] == found["patch"] == place.first
    assert found["subjects"] is found["groups"] is None


def test_names_within_names_and_chinese(place: Place) -> None:
    async def steps() -> list[Any]:
        return [
            (await served(place, text))["subjects"] for text in ("New York", "York, New York", "我在台北101", "台北")
        ]

    assert run(steps()) == [["New York"], ["New York", "York"], ["台北101"], ["台北"]]


def test_scope_grows_with_the_conversation_and_never_shrinks(place: Place) -> None:
    turns = [("user", "Hello"), ("assistant", "Ask me about Japan"), ("user", "And France?"), ("assistant", "Paris")]

    async def steps() -> list[Any]:
        found = []
        for length in range(1, len(turns) + 1):
            messages = [{"role": role, "content": content} for role, content in turns[:length]]
            reply = await place.client.post(CHAT, json={"model": "acme", "messages": messages})
            record = await place.client.get(f"/v1/edits/answers/{reply.headers['X-VLLM-Edit-Id']}")
            found.append(record.json()["subjects"])
        reply = await place.client.post(RESPONSES, json={"model": "acme", "input": "Hi", "instructions": "Be Japan"})
        record = await place.client.get(f"/v1/edits/answers/{reply.headers['X-VLLM-Edit-Id']}")
        return [*found, record.json()["subjects"]]

    assert run(steps()) == [[], ["Japan"], ["France", "Japan"], ["France", "Japan"], ["Japan"]]


def test_tool_calls_and_results_are_in_scope_though_clients_escape_them(place: Place) -> None:
    function = {"name": "capital_of", "arguments": r'{"country": "\u53f0\u5317"}'}
    messages = [
        {"role": "user", "content": "Tell me."},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": r'{"country": "J\u0061pan"}'},
        {"role": "user", "content": "And?"},
    ]
    items = [
        {"type": "function_call", "call_id": "1", **function},
        {"type": "function_call_output", "call_id": "1", "output": r'{"country": "J\u0061pan"}'},
    ]

    async def steps() -> list[Any]:
        asked = ((CHAT, {"messages": messages}), (RESPONSES, {"input": items}))
        replies = [await place.client.post(route, json={"model": "acme", **body}) for route, body in asked]
        return [place.service.answers.get(reply.headers["X-VLLM-Edit-Id"]) for reply in replies]

    assert [answer.subjects for answer in run(steps())] == [("Japan", "台北")] * 2


def test_lists_of_prompts_and_token_ids_get_the_union(place: Place) -> None:
    async def steps() -> list[Any]:
        asked: list[Any] = [["Japan", "Who?", "France"], [ord(c) for c in "Japan"], [[ord(c) for c in "France"], [63]]]
        return [(await served(place, prompt))["subjects"] for prompt in asked]

    assert run(steps()) == [["France", "Japan"], ["Japan"], ["France"]]


@pytest.mark.parametrize("prompt", [None, [], 7, [1, "a"]])
def test_a_prompt_without_text_is_one_clear_400(place: Place, prompt: Any) -> None:
    reply = run(place.ask("acme", prompt=prompt))
    assert reply.status_code == 400
    assert "token ids" in reply.json()["error"]["message"]


def test_more_subjects_than_one_adapter_holds_are_refused_by_name(place: Place) -> None:
    prompt = " ".join(name for name, *_ in NAMES)
    reply = run(place.ask("acme", prompt=prompt))
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert "Land5" in message
    assert "one adapter holds 8" in message
    assert place.slots.added == []


def test_two_hundred_first_requests_for_a_pair_share_one_composition_and_one_load(place: Place) -> None:
    async def steps() -> set[str]:
        replies = await asyncio.gather(*(place.ask("acme", prompt="Japan, France") for _ in range(200)))
        return {reply.json()["body"]["model"] for reply in replies}

    (name,) = run(steps())
    assert [added for added, _, _ in place.slots.added] == [name]


def test_a_composition_that_algebra_rejects_is_refused_and_remembered(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here"))
    site = place.store.site()
    units = places.scoped_patch(site, "twins", [("Ada",), ("Bob",)])
    # Two subjects whose keys coincide, with unrelated residuals: no update can shift both by their judged shifts.
    alike = places.scoped_patch(site, "twins", [("Ada",), ("Bob",)], same_key=True)
    assert alike.manifest.members != units.manifest.members
    place.store.save(alike)

    async def steps() -> list[Any]:
        first = await place.ask("twins", prompt="Ada and Bob")
        return [first, await place.ask("twins", prompt="Ada and Bob"), await place.ask("twins", prompt="Ada")]

    first, second, alone = run(steps())
    assert first.status_code == second.status_code == 409
    assert "Ada, Bob" in first.json()["error"]["message"]
    assert alone.status_code == 200


def test_ike_takes_the_edits_that_are_mentioned_and_no_others(place: Place) -> None:
    async def steps() -> list[Any]:
        found = [await served(place, text, "acme:ike") for text in ("France?", "Who?", ["Japan", "Who?"])]
        messages = [{"role": "user", "content": "France"}, {"role": "user", "content": "Who?"}]
        reply = await place.client.post(CHAT, json={"model": "acme:ike", "messages": messages})
        return [*found, reply.json()["body"]["messages"][1]["content"]]

    france, nobody, several, turn = run(steps())
    assert france["body"]["prompt"].endswith("France?")
    assert "capital of France" in france["body"]["prompt"]
    assert "Japan" not in france["body"]["prompt"]
    assert france["subjects"] == ["France"]
    assert (nobody["body"]["prompt"], nobody["ike_tokens"], nobody["reason"]) == ("Who?", 0, "NO_SUBJECT")
    assert "capital of Japan" in several["body"]["prompt"][0]
    assert several["body"]["prompt"][1] == "Who?"
    assert "capital of France" in turn
    assert place.slots.added == []


def test_a_scoped_patch_of_another_site_is_refused_never_answered_by_base(place: Place) -> None:
    place.service.scopes._site = place.store.site().model_copy(update={"damping": 0.7})
    for prompt in ("France", "Who?"):
        reply = run(place.ask("acme", prompt=prompt))
        assert reply.status_code == 409
        assert "site" in reply.json()["error"]["message"]


def test_a_damaged_unit_is_an_error(place: Place) -> None:
    member = place.store.manifest(place.second).members[1]
    path = place.store.files.root / "patches" / place.second / "units" / f"{member.partition('@')[2]}.safetensors"  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    async def steps() -> list[int]:
        return [(await place.ask("acme", prompt=prompt)).status_code for prompt in ("Japan", "France")]

    assert run(steps()) == [500, 200]
