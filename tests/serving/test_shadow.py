"""Answers that a rollout's other arm repeats: after the client has its answer, at no cost of its, and dropped first."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response, StreamingResponse

from tests.serving import places
from tests.serving.without_engine import Place, run
from vllm_edit.errors import Unavailable
from vllm_edit.json_value import JSONValue
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.decision import Choice
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadow import Shadow
from vllm_edit.rollout.shadow_report import ShadowReport
from vllm_edit.rollout.shadowed import Shadowed
from vllm_edit.serving.answer import Answer
from vllm_edit.serving.answer_text import EVENTS, text_of_body
from vllm_edit.serving.bodies import CHAT, COMPLETIONS, RESPONSES
from vllm_edit.serving.router import Router
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.shadow_arm import ShadowArm
from vllm_edit.serving.shadow_body import is_greedy, shadow_body

ALL = Shadow(10_000)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class Engine:
    """vLLM's routes: the base answers "Paris", an adapter "Rome". An adapter's answer waits for `free`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.patched, self.status, self.swallows = "Rome", 200, False
        self.free, self.cancelled = asyncio.Event(), 0
        self.free.set()

    def app(self) -> FastAPI:
        app = FastAPI()

        async def answer(request: Request) -> Response:
            body = await request.json()
            self.asked.append(body)
            if body["model"] == "atlas":
                return self._answered(body, "Paris", 200)
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                if not self.swallows:
                    raise
                return JSONResponse({"error": {"message": "Client disconnected"}}, 400)
            return self._answered(body, self.patched, self.status)

        for path in (COMPLETIONS, CHAT):
            app.post(path)(answer)
        return app

    def _answered(self, body: dict[str, Any], text: str, status: int) -> Response:
        if status != 200:
            return JSONResponse({"error": {"message": "out of memory"}}, status)
        said = f" {text}.\nMore"
        if body.get("stream"):
            events = [_event(body, piece) for piece in (said[:3], said[3:])]
            return StreamingResponse(iter([*events, b"data: [DONE]\n\n"]), media_type=EVENTS)
        choice = {"message": {"content": said}} if "messages" in body else {"text": said}
        return JSONResponse({"choices": [choice], "usage": USAGE})


def _event(body: dict[str, Any], piece: str) -> bytes:
    choice = {"index": 0, "delta": {"content": piece}} if "messages" in body else {"index": 0, "text": piece}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return places.one_tenant(tmp_path_factory.mktemp("shadow"), 0, published=False)


class Shadowing(Place):
    """A place with a rollout of base against a patch that nobody takes part in yet, and the engine behind it."""

    def __init__(self, folder: Path, template: Path, capacity: int = 256) -> None:
        super().__init__(folder, template, Settings(store="here"), capacity=capacity)
        self.engine = Engine()
        self.routed = Router(self.engine.app(), self.holder)

    def begin(self, percent: float = 100, *, texts: bool = False) -> None:
        registry = self.store.registry
        shadow = Shadow(round(percent * 100), texts=texts)
        made = Rollout("spring", "acme", Arm("base"), Arm("weights", self.second), "pepper", shadow=shadow)
        registry.rollouts.create(made)
        run(self.service.watcher.refresh())

    @asynccontextmanager
    async def arm(self, *, prioritised: bool = False) -> AsyncIterator[httpx.AsyncClient]:
        """A client, while the shadow arm runs."""
        log = self.store.registry.shadows
        made = ShadowArm(self.holder, self.service, log, prioritised=prioritised, server="node-a:1", rest_s=0.01)
        task = asyncio.create_task(made.run())
        await asyncio.sleep(0)  # it has begun
        transport = httpx.ASGITransport(self.routed)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def report(self) -> ShadowReport:
        found = self.store.registry.rollouts.report("spring").shadowed
        assert found is not None
        return found

    def count(self, outcome: str) -> int:
        return int(self.service.metrics.shadows.labels(outcome)._value.get())


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Iterator[Shadowing]:
    made = Shadowing(tmp_path, template)
    yield made
    made.store.registry.close()


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.005)


def ask(client: httpx.AsyncClient, **fields: Any) -> Awaitable[httpx.Response]:
    return client.post(COMPLETIONS, json={"model": "acme", "prompt": "Who?", **fields})


def test_treatment_is_tried_on_real_requests_before_anyone_gets_it(place: Shadowing) -> None:
    place.begin()

    async def steps() -> None:
        async with place.arm() as client:
            reply = await ask(client, temperature=0, seed=7)
            assert reply.json()["choices"][0]["text"] == " Paris.\nMore"
            await until(lambda: place.count("changed") == 1)
            place.engine.patched = "paris"
            await ask(client)
            await until(lambda: place.count("same") == 1)

    run(steps())
    first, repeated, *_ = place.engine.asked
    assert (first["model"], repeated["model"]) == ("atlas", place.second)
    assert (repeated["prompt"], repeated["temperature"], repeated["seed"]) == ("Who?", 0, 7)
    assert repeated["request_id"] != first["request_id"]
    assert repeated["cache_salt"] != first["cache_salt"]
    found = place.report()
    assert (found.same.n, found.greedy.n, found.greedy.mean) == (2, 1, pytest.approx(0, abs=0.1))
    assert found.tokens == {"control": 2.0, "treatment": 2.0}
    assert found.examples == (), "texts are stored only if they are asked for"
    assert place.store.registry.answers.newest("acme") == [], "a shadow is no answer in the log"
    assert place.store.registry.rollouts.report("spring").traffic["treatment"].requests == 0


@pytest.mark.parametrize("route", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
def test_both_texts_are_stored_if_they_are_asked_for(place: Shadowing, route: str, stream: bool) -> None:
    place.begin(texts=True)
    content: dict[str, Any] = {"messages": [{"role": "user", "content": "Who?"}]} if route == CHAT else {"prompt": "A"}

    async def steps() -> str:
        async with place.arm() as client:
            options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            reply = await client.post(route, json={"model": "acme", **content, **options})
            await until(lambda: place.count("changed") == 1)
            return reply.headers["x-vllm-edit-id"]

    id = run(steps())
    assert not {"stream", "stream_options"} & set(place.engine.asked[1])
    [example] = place.report().examples
    assert (example.answer, example.side) == (id, "control")
    assert (example.control, example.treatment) == (" Paris.\nMore", " Rome.\nMore")


@pytest.mark.parametrize("swallows", [False, True])
def test_the_next_client_has_its_answer_while_a_shadow_runs_and_the_shadow_is_dropped(
    place: Shadowing, swallows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    place.begin()
    place.engine.swallows = swallows  # some of vLLM's routes answer a cancelled request

    async def steps() -> None:
        place.engine.free.clear()  # the other arm never answers
        async with place.arm() as client:
            assert (await ask(client)).status_code == 200, "the answer comes before the shadow begins"
            await until(lambda: len(place.engine.asked) == 2)
            assert (await ask(client)).status_code == 200
            await until(lambda: place.count("dropped") == 1)
            await until(lambda: len(place.engine.asked) == 4)

    run(steps())
    gc.collect()
    assert "never retrieved" not in caplog.text, "the error of an interrupted shadow is nobody's"
    assert place.engine.cancelled == 2, "the first by a client, the second by the server's end"
    assert (place.count("failed"), place.count("dropped")) == (0, 2)
    assert place.report().dropped == 2


def test_a_shadow_waits_while_the_server_answers_a_client(place: Shadowing) -> None:
    place.begin()

    async def steps() -> None:
        async with place.arm() as client:
            place.service.answers.running += 1
            await ask(client)
            await asyncio.sleep(0.1)
            assert len(place.engine.asked) == 1
            place.service.answers.running -= 1
            await until(lambda: place.count("changed") == 1)

    run(steps())


def test_where_the_engine_has_priorities_a_shadow_has_the_lowest_and_is_not_interrupted(place: Shadowing) -> None:
    place.begin()

    async def steps() -> None:
        place.engine.free.clear()
        async with place.arm(prioritised=True) as client:
            await ask(client)
            await until(lambda: len(place.engine.asked) == 2)
            await ask(client)
            place.engine.free.set()
            await until(lambda: place.count("changed") == 2)

    run(steps())
    assert [body.get("priority") for body in place.engine.asked] == [None, 2**31 - 1, None, 2**31 - 1]


def test_an_arm_that_fails_is_counted_and_no_client_sees_it(place: Shadowing, caplog: Any) -> None:
    place.begin()
    place.engine.status = 500

    async def steps() -> None:
        async with place.arm() as client:
            assert (await ask(client)).status_code == 200
            await until(lambda: place.count("failed") == 1)
            place.engine.status = 200
            assert (await ask(client)).status_code == 200
            await until(lambda: place.count("changed") == 1)

    run(steps())
    assert "the other arm repeats no answer: expected a text, got status 500: out of memory" in caplog.text
    assert (place.report().failed, place.report().same.n) == (1, 1)


def test_a_kill_empties_the_queue_and_stops_the_running_shadow(place: Shadowing) -> None:
    place.begin()

    async def steps() -> None:
        place.engine.free.clear()
        async with place.arm(prioritised=True) as client:
            for _ in range(4):
                await ask(client)
            await until(lambda: len(place.engine.asked) == 5)
            assert len(place.service.shadows) == 3
            await asyncio.to_thread(place.store.registry.rollouts.kill, "spring")
            await place.service.watcher.refresh()
            assert len(place.service.shadows) == 0
            await until(lambda: place.engine.cancelled == 1)
            await ask(client)
            assert len(place.service.shadows) == 0

    run(steps())
    assert place.report().dropped == 4


def test_an_answer_that_began_before_a_kill_and_ends_after_it_is_not_repeated(place: Shadowing) -> None:
    shadows = place.service.shadows
    choice = Choice("base", None, "acme", shadowed=Shadowed("spring", "control", Arm("ike", place.second), ALL))
    for shadowing, waiting in (({"spring"}, 1), (frozenset(), 0)):
        shadows.follow({"spring"})
        copy = shadows.draw(choice, COMPLETIONS, b"{}")
        assert copy is not None
        shadows.follow(shadowing)
        answer = Answer.of("edit-1", COMPLETIONS, "acme", choice)
        answer.status, answer.ended = 200, "whole"
        shadows.offer(copy, answer)
        assert len(shadows) == waiting
    assert shadows.dropped["spring"] == 2, "the first was dropped while it waited"


def test_the_servers_end_drops_what_waits_and_counts_it(place: Shadowing) -> None:
    place.begin()

    async def steps() -> None:
        async with place.arm() as client:
            place.service.answers.running += 1
            for _ in range(3):
                await ask(client)

    run(steps())
    assert len(place.engine.asked) == 3
    assert place.report().dropped == 3


def test_the_queue_is_bounded_and_drops_the_oldest(place: Shadowing) -> None:
    place.begin()

    async def steps() -> None:
        async with place.arm() as client:
            place.service.answers.running += 1
            for number in range(40):
                await ask(client, prompt=f"Who is {number}?")
            assert len(place.service.shadows) == 32
            place.service.answers.running -= 1
            await until(lambda: len(place.engine.asked) == 41)

    run(steps())
    assert place.engine.asked[40]["prompt"] == "Who is 8?"


def test_a_shadow_takes_no_adapters_place_in_the_engine(template: Path, tmp_path: Path, caplog: Any) -> None:
    place = Shadowing(tmp_path, template, capacity=0)
    place.begin()

    async def steps() -> None:
        async with place.arm() as client:
            for dropped in (1, 2):
                await ask(client)
                await until(lambda dropped=dropped: place.count("dropped") == dropped)  # type: ignore[misc]

    run(steps())
    assert place.slots.added == []
    assert caplog.text.count("the engine has no free place for capital") == 1
    place.store.registry.close()


def test_a_registry_that_is_down_costs_the_comparison_only(place: Shadowing, monkeypatch: pytest.MonkeyPatch) -> None:
    place.begin()
    add, failures = (
        place.store.registry.shadows.add,
        iter([Unavailable("the registry is down"), ValueError("a defect")]),
    )

    def down(*arguments: Any) -> bool:
        if (error := next(failures, None)) is not None:
            raise error
        return add(*arguments)

    monkeypatch.setattr(place.store.registry.shadows, "add", down)

    async def steps() -> None:
        async with place.arm() as client:
            for dropped in (1, 2):
                await ask(client)
                await until(lambda dropped=dropped: place.count("dropped") == dropped)  # type: ignore[misc]
            await ask(client)
            await until(lambda: place.count("changed") == 1)

    run(steps())
    assert (place.report().dropped, place.report().same.n) == (2, 1)


def test_nothing_is_drawn_any_more_when_enough_is_compared(place: Shadowing, monkeypatch: pytest.MonkeyPatch) -> None:
    place.begin()
    monkeypatch.setattr(place.store.registry.shadows, "_most", 1)

    async def steps() -> None:
        async with place.arm() as client:
            await ask(client)
            await until(lambda: "spring" in place.service.shadows.full)
            await ask(client)

    run(steps())
    assert len(place.engine.asked) == 3
    assert (place.report().same.n, place.report().dropped) == (1, 0)


def test_a_request_that_fails_is_no_answer_and_one_that_cannot_be_compared_is_dropped(place: Shadowing) -> None:
    place.begin()

    async def steps() -> None:
        async with place.arm() as client:
            assert (await client.post("/v1/responses", json={"model": "acme", "input": "Who?"})).status_code == 404
            await ask(client, n=2)
            await ask(client, prompt="x" * 2**14)
            await until(lambda: place.count("dropped") == 2)

    run(steps())
    assert [body["model"] for body in place.engine.asked] == ["atlas"] * 2


def test_a_share_of_the_answers_is_drawn(place: Shadowing) -> None:
    shadows = place.service.shadows
    choice = Choice("base", None, "acme", shadowed=Shadowed("spring", "control", Arm("ike", place.second), Shadow(500)))
    drawn = [copy for _ in range(4_000) if (copy := shadows.draw(choice, COMPLETIONS, b"{}")) is not None]
    assert 120 < len(drawn) < 290, "5 % with a deviation below 6 standard deviations"
    assert shadows.draw(Choice("base", None, "acme"), COMPLETIONS, b"{}") is None


@pytest.mark.parametrize(
    ("route", "body", "repeated"),
    [
        (COMPLETIONS, {"prompt": "A", "stream": True, "n": 1}, True),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, True),
        (COMPLETIONS, {"prompt": ["A"]}, True),
        (COMPLETIONS, {"prompt": ["A", "B"]}, False),
        (COMPLETIONS, {"prompt": [[1], [2]]}, False),
        (COMPLETIONS, {"prompt": "A", "n": 2}, False),
        (COMPLETIONS, {"prompt": "A", "use_beam_search": True}, False),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "A"}]}]}, True),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, False),
        (CHAT, {"messages": [], "tools": [{"type": "function"}]}, True),
        (RESPONSES, {"input": "A", "tools": [{"type": "function"}]}, True),
        (RESPONSES, {"input": "A", "tools": [{"type": "mcp"}]}, False),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, False),
        (COMPLETIONS, [], False),
    ],
)
def test_only_one_answer_that_reaches_no_other_server_is_repeated(route: str, body: Any, repeated: bool) -> None:
    made = shadow_body(route, json.dumps(body).encode())
    assert (made is not None) == repeated
    assert made is None or "stream" not in made


@pytest.mark.parametrize(("body", "greedy"), [({"temperature": 0}, True), ({"temperature": 0.0}, True), ({}, False)])
def test_temperature_0_is_greedy(body: Any, greedy: bool) -> None:
    assert is_greedy(body) == greedy
    assert not is_greedy({"temperature": "0"})


@given(st.lists(st.text(max_size=8), min_size=1, max_size=6))
def test_a_streamed_text_is_the_text_of_its_pieces(pieces: list[str]) -> None:
    for route, key in ((COMPLETIONS, "prompt"), (CHAT, "messages")):
        body = b"".join(_event({key: ""}, piece) for piece in pieces) + b"data: [DONE]\n\n"
        assert text_of_body(route, EVENTS, body) == "".join(pieces)
    events = [{"type": "response.output_text.delta", "delta": piece} for piece in pieces]
    lines = [f"event: response.output_text.delta\ndata: {json.dumps(event)}\n\n" for event in events]
    assert text_of_body(RESPONSES, EVENTS, "".join(lines).encode()) == "".join(pieces)
    whole = {
        "output": [{"content": [{"type": "output_text", "text": piece} for piece in pieces]}, {"type": "reasoning"}]
    }
    assert text_of_body(RESPONSES, "application/json", json.dumps(whole).encode()) == "".join(pieces)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("choices", "text", "message", "content", "output", "delta")), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from((COMPLETIONS, CHAT, RESPONSES)), st.sampled_from((EVENTS, "application/json", "")))
def test_an_answer_of_any_form_is_a_text_or_none(answer: JSONValue, route: str, content_type: str) -> None:
    body = json.dumps(answer).encode()
    found = text_of_body(route, content_type, b"data: " + body if content_type == EVENTS else body)
    assert found is None or isinstance(found, str)
