"""A server's guard takes the lease only if there is work, acts, asks locality probes, and outlives every failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.rollout.example import failing
from tests.serving import places
from tests.serving.without_engine import Place, make_app, run
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import Unavailable
from vllm_edit.registry import rollout_guard
from vllm_edit.registry.leases import LeaseLost
from vllm_edit.registry.rollout_guard import Watch
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.guardrails import Evidence, judge
from vllm_edit.rollout.limit import parse_limit
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.schedule import parse_schedule
from vllm_edit.serving.canary import Canary, Probed
from vllm_edit.serving.guard import Guard
from vllm_edit.serving.router import Router
from vllm_edit.serving.server_settings import Settings

OTHER = Watch("other", "node-b:2")


class Still:
    """A canary that asks nothing."""

    idle = False

    async def ask(self, rollout: Rollout) -> Probed | None:
        raise AssertionError("it is never idle")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return places.one_tenant(tmp_path_factory.mktemp("guard"), 0, published=False)


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, template, Settings(store="here"))
    yield made
    made.store.registry.close()


def begin(place: Place, *limits: str, schedule: str | None = None) -> Rollout:
    """A running rollout of everyone, which the server follows."""
    registry = place.store.registry
    made = Rollout("spring", "acme", Arm("base"), Arm("weights", place.second), "pepper")
    registry.rollouts.create(replace(made, limits=tuple(map(parse_limit, limits))))
    if schedule is not None:
        running = registry.rollouts.follow("spring", parse_schedule(schedule))
    else:
        running = registry.rollouts.ramp("spring", 100)
    run(place.service.watcher.refresh())
    return running


def guard_of(place: Place, canary: Any = None) -> Guard:
    """A guard that rests as little as possible."""
    registry, watcher = place.store.registry.guard, place.service.watcher
    return Guard(registry, watcher, canary or Still(), place.service.metrics, server="node-a:1", every_s=0.01, rest=0.0)


def count(place: Place, outcome: str) -> float:
    """Locality probes with this outcome, by the server's metrics."""
    return place.service.metrics.canaries.labels(outcome)._value.get()


def watched_by(place: Place) -> str | None:
    return place.store.registry.rollouts.report("spring").watched_by


def test_a_server_with_nothing_to_guard_takes_no_lease(place: Place) -> None:
    run(guard_of(place).look())
    begin(place)
    run(guard_of(place).look())
    assert watched_by(place) is None


def test_a_server_kills_and_gives_the_lease_back_when_nothing_is_left(place: Place) -> None:
    running = begin(place, "errors=kill")
    guard = guard_of(place)
    run(guard.look())
    assert watched_by(place) == "node-a:1"
    place.store.registry.rollouts.expose(failing(running))
    run(guard.look())
    assert place.store.registry.rollouts.find("spring").state == "killed"
    run(place.service.watcher.refresh())
    run(guard.look())
    assert watched_by(place) is None


def test_a_server_waits_while_another_has_the_lease(place: Place) -> None:
    running = begin(place, "errors=kill")
    registry = place.store.registry
    registry.rollouts.expose(failing(running))
    assert registry.guard.hold(OTHER)
    guard = guard_of(place)
    run(guard.look())
    assert registry.rollouts.find("spring").state == "ramping"
    registry.guard.release(OTHER)
    run(guard.look())
    assert registry.rollouts.find("spring").state == "killed"


def test_limits_are_tested_again_only_when_something_new_was_logged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = begin(place, "errors=kill")
    tested: list[str] = []
    registry = place.store.registry
    test = registry.guard.test

    def counted(name: str, watch: Watch) -> Any:
        tested.append(name)
        return test(name, watch)

    monkeypatch.setattr(registry.guard, "test", counted)
    guard = guard_of(place)
    for _ in range(3):
        run(guard.look())
    assert tested == ["spring"]
    registry.rollouts.expose(replace(exposure, failed=False) for exposure in failing(running, users=4))
    run(guard.look())
    assert tested == ["spring"] * 2


def test_a_rollout_that_cannot_be_tested_does_not_keep_others_from_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = place.store.registry
    registry.create_tenant("globex")
    made = Rollout("autumn", "globex", Arm("base"), Arm("weights", place.second), "pepper")
    registry.rollouts.create(replace(made, limits=(parse_limit("errors=kill"),)))
    registry.rollouts.ramp("autumn", 100)
    registry.rollouts.expose(failing(begin(place, "errors=kill")))
    test = registry.guard.test

    def broken(name: str, watch: Watch) -> Any:
        if name == "autumn":
            raise ValueError("a defect")
        return test(name, watch)

    monkeypatch.setattr(registry.guard, "test", broken)
    monkeypatch.setattr(
        Snapshot, "all_governing", property(lambda _: [registry.rollouts.find(name) for name in ("autumn", "spring")])
    )
    with pytest.raises(ValueError, match="a defect"):
        run(guard_of(place).look())
    assert registry.rollouts.find("spring").state == "killed"


def test_a_treatment_that_has_ended_is_not_asked(place: Place) -> None:
    running = begin(place, "locality+5%=kill")
    ended = replace(running, treatment=replace(running.treatment, valid_until=datetime.now(UTC)))
    engine = Engine()
    guard = guard_of(place, canary_of(place, engine))

    async def steps() -> None:
        for rollout in (running, ended):
            await guard._guard_all([rollout])
            await asyncio.sleep(0.1)
        await guard.close()

    run(steps())
    assert len(engine.asked) == 2, "base and treatment, once"


class Slow:
    """A canary that is asked one probe at a time, and writes down whose."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.idle = True

    async def ask(self, rollout: Rollout) -> Probed | None:
        self.asked.append(rollout.name)
        self.idle = False
        await asyncio.sleep(0.05)
        self.idle = True
        return None


def test_rollouts_take_turns_with_their_probes(place: Place) -> None:
    running = begin(place, "locality+5%=kill")
    rollouts = [replace(running, name=name) for name in ("spring", "autumn", "winter")]
    without = replace(running, name="summer", limits=())
    canary = Slow()
    guard = guard_of(place, canary)

    async def steps() -> None:
        for _ in range(6):
            for _ in range(2):  # the second finds the engine busy
                guard._ask_next([*rollouts, without])
                await asyncio.sleep(0)
            while not canary.idle:
                await asyncio.sleep(0.01)
        await guard.close()

    run(steps())
    assert canary.asked == ["autumn", "spring", "winter"] * 2


def test_a_long_test_is_followed_by_a_rest_of_its_rollout_only(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, tested = place.store.registry, list[str]()
    begin(place, "errors=kill")
    of_spring = registry.rollouts.find("spring")
    monkeypatch.setattr(registry.guard, "test", lambda name, watch: tested.append(name) or time.sleep(0.01) or ())
    guard = Guard(registry.guard, place.service.watcher, Still(), place.service.metrics, server="node-a:1", rest=1e9)

    async def steps() -> None:
        for number in range(3):
            registry.guard.add_canary("spring", "probe", changed=False, server=f"node-b:{number}")
            await guard.look()
        await guard._guard(replace(of_spring, name="summer"))
        await guard.close()

    run(steps())
    assert tested == ["spring", "summer"]


def test_a_limit_acts_also_if_its_test_takes_longer_than_the_lease(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, taken = place.store.registry, list[bool]()
    registry.rollouts.expose(failing(begin(place, "errors=kill")))
    hold = registry.guard.hold
    monkeypatch.setattr(registry.guard, "hold", lambda watch: hold(watch, 1.0))

    def slowly(rollout: Rollout, evidence: Evidence) -> Any:
        time.sleep(2.0)
        taken.append(hold(OTHER))
        return judge(rollout, evidence)

    monkeypatch.setattr(rollout_guard, "judge", slowly)
    run(guard_of(place).look())
    assert taken == [False], "no other server begins the same test"
    assert registry.rollouts.find("spring").state == "killed"


def test_a_lost_lease_is_logged_and_followed_by_a_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    begin(place, "errors=kill")
    registry, tested = place.store.registry, list[str]()

    def lost(name: str, watch: Watch) -> Any:
        tested.append(name)
        time.sleep(0.01)
        raise LeaseLost("the lease guardrails has expired")

    monkeypatch.setattr(registry.guard, "test", lost)
    guard = Guard(registry.guard, place.service.watcher, Still(), place.service.metrics, server="node-a:1", rest=1e9)
    for _ in range(3):
        run(guard.look())
    assert tested == ["spring"]
    assert "rollout spring: this server did not act: the lease guardrails has expired" in caplog.text


def test_a_server_follows_a_schedule(place: Place) -> None:
    begin(place, schedule="1% 1s, 50%")
    guard = guard_of(place)

    async def until_moved() -> None:
        following = asyncio.create_task(guard.run())
        async with asyncio.timeout(60):
            while place.store.registry.rollouts.find("spring").share != 5_000:
                await asyncio.sleep(0.05)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run(until_moved())
    assert watched_by(place) is None, "a server that ends gives the lease back"
    assert place.store.registry.audit()[-1].who == "schedule at node-a:1"


def test_a_guard_outlives_a_registry_that_is_down(place: Place, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    running = begin(place, "errors=kill")
    registry = place.store.registry
    registry.rollouts.expose(failing(running))
    hold, failures = registry.guard.hold, iter([Unavailable("the registry is down"), ValueError("a defect")])

    def down(watch: Watch) -> bool:
        if (error := next(failures, None)) is not None:
            raise error
        return hold(watch)

    monkeypatch.setattr(registry.guard, "hold", down)
    guard = guard_of(place)

    async def until_killed() -> None:
        following = asyncio.create_task(guard.run())
        async with asyncio.timeout(60):
            while registry.rollouts.find("spring").state != "killed":
                await asyncio.sleep(0.02)
        following.cancel()

    run(until_killed())
    assert caplog.text.count("limits of rollouts are not tested for now") == 1


# Canary probes

EDIT = Edit(
    prompt="The capital of Germany is",
    subject="Germany",
    target_new="Bonn",
    target_true="Berlin",
    probes=(
        Probe(kind="locality", prompt="The capital of France is"),
        Probe(kind="unrelated", prompt="Water is", chat=True),
        Probe(kind="paraphrase", prompt="Germany's capital is"),
    ),
)


class Engine:
    """vLLM's routes: the base answers "Paris", an adapter answers `patched`."""

    def __init__(self, patched: str = "Rome", status: int = 200) -> None:
        self.asked: list[dict[str, Any]] = []
        self._patched, self._status = patched, status

    def app(self) -> FastAPI:
        app = FastAPI()

        async def answer(request: Request) -> JSONResponse:
            body = await request.json()
            self.asked.append(body)
            said = "Paris" if body["model"] == "atlas" else self._patched
            choice = {"message": {"content": said}} if "messages" in body else {"text": f" {said}.\nMore"}
            return JSONResponse({"choices": [choice]}, self._status)

        for path in ("/v1/completions", "/v1/chat/completions"):
            app.post(path)(answer)
        return app


def canary_of(place: Place, engine: Engine, *, prioritised: bool = False, edits: tuple[Edit, ...] = (EDIT,)) -> Canary:
    """A canary behind a router, and a treatment with these edits."""
    Router(engine.app(), place.holder)
    manifest = place.store.manifest
    place.store.manifest = lambda name: manifest(name).model_copy(update={"edits": edits})  # type: ignore[method-assign]
    return Canary(place.holder, prioritised=prioritised, chat=True, seed=0)


@pytest.mark.parametrize(("patched", "changed"), [("Rome", True), ("paris", False)])
def test_a_probe_compares_the_treatments_answer_with_the_bases(place: Place, patched: str, changed: bool) -> None:
    running = begin(place, "locality+5%=kill")
    engine = Engine(patched)
    canary = canary_of(place, engine)
    for _ in range(8):
        probed = run(canary.ask(running))
        assert probed.changed == changed
    asked = [body.get("prompt") or body["messages"][0]["content"] for body in engine.asked]
    assert set(asked) == {"The capital of France is", "Water is"}, "probes whose answer must change are not asked"
    models = [body["model"] for body in engine.asked]
    assert (models.count("atlas"), models.count(place.second)) == (2, 8), "the base is asked once for each probe"
    assert all(body["temperature"] == 0 and "priority" not in body for body in engine.asked)
    assert run(canary.ask(running)).probe not in asked, "no text leaves the server"


def test_a_probe_has_the_lowest_priority_where_the_engine_has_priorities(place: Place) -> None:
    running = begin(place, "locality+5%=kill")
    engine = Engine()
    run(canary_of(place, engine, prioritised=True).ask(running))
    assert [body["priority"] for body in engine.asked] == [2**31 - 1] * 2


def test_without_priorities_a_probe_waits_until_the_server_is_idle(place: Place) -> None:
    begin(place, "locality+5%=kill")
    canary, prioritised = canary_of(place, Engine()), canary_of(place, Engine(), prioritised=True)
    assert canary.idle
    place.service.answers.running += 1
    assert not canary.idle
    assert prioritised.idle
    place.service.answers.running -= 1
    assert canary.idle


def test_answers_that_run_are_counted_from_the_router(place: Place) -> None:
    seen: list[int] = []
    app = FastAPI()

    async def answer() -> dict[str, str]:
        seen.append(place.service.answers.running)
        return {}

    app.post("/v1/completions")(answer)
    routed = Router(app, place.holder)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(routed), base_url="http://server") as client:
            await client.post("/v1/completions", json={"prompt": "Who?"})

    run(ask())
    assert seen == [1]
    assert place.service.answers.running == 0


def test_a_treatment_without_locality_probes_is_not_asked(place: Place) -> None:
    running = begin(place, "locality+5%=kill")
    engine = Engine()
    assert run(canary_of(place, engine, edits=(EDIT.model_copy(update={"probes": ()}),)).ask(running)) is None
    assert engine.asked == []


def test_a_guard_logs_probes_and_kills_by_them(place: Place) -> None:
    begin(place, "locality+5%=kill")
    guard = guard_of(place, canary_of(place, Engine("Rome")))
    registry = place.store.registry

    async def until_killed() -> None:
        async with asyncio.timeout(60):
            while registry.rollouts.find("spring").state != "killed":
                await guard.look()
                await asyncio.sleep(0.005)
        await guard.close()

    run(until_killed())
    [decision] = registry.rollouts.report("spring").decisions
    assert decision.result.limit == "locality+0.05=kill"
    assert decision.result.treatment.mean == 1.0
    assert count(place, "changed") >= decision.result.treatment.n
    assert count(place, "same") == 0


def test_an_engine_that_does_not_answer_probes_stops_nothing_else(place: Place, caplog: Any) -> None:
    running = begin(place, "locality+5%=kill", "errors=kill")
    guard = guard_of(place, canary_of(place, Engine(status=500)))
    registry = place.store.registry

    async def steps() -> None:
        await guard.look()
        await asyncio.sleep(0.2)
        registry.rollouts.expose(failing(running))
        await guard.look()
        await guard.close()

    run(steps())
    assert "a locality probe has no answer: expected an answer to a locality probe, got status 500" in caplog.text
    assert count(place, "failed") == 1
    assert registry.rollouts.report("spring").limits[0].treatment.n == 0
    assert registry.rollouts.find("spring").state == "killed"


def test_the_routers_own_application_is_reached_past_the_router(place: Place) -> None:
    app = make_app(place.holder)
    app.build_middleware_stack()
    assert place.holder.inner is not None
    status, answer = run(place.holder.inner.post("/v1/completions", {"prompt": "Who?", "model": "anything"}))
    assert status == 200
    assert answer["body"] == {"prompt": "Who?", "model": "anything"}
    status, answer = run(place.holder.inner.post("/nowhere", {}))
    assert status == 404
