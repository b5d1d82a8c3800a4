"""With keys a tenant reaches its own compositions and nothing else, on every route of the server."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from tests.serving import places
from tests.serving.vllm_surface import VLLMSurface
from tests.serving.without_engine import Place, bearer, run
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.assignment import assign
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.sticky import StickyKey
from vllm_edit.serving.bodies import CHAT, COMPLETIONS, RESPONSES
from vllm_edit.serving.router import Router
from vllm_edit.serving.server_settings import TENANT_HEADER, TRUSTED_PEERS, Settings

TENANT_MAY = {
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/models"),
    ("POST", "/v1/edits/outcomes"),
}
ANYONE_MAY = {("GET", "/health"), ("GET", "/ping"), ("POST", "/ping"), ("GET", "/version")}
CONSOLE = "/v1/edits/console"
SIGNS_IN = {
    ("GET", f"{CONSOLE}/sign-in"),
    ("POST", f"{CONSOLE}/sign-in"),
    ("GET", f"{CONSOLE}/static/{{name}}"),
}
"""What a browser without a session reaches of the console: the form of an administrator's key, and its style."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches capital (published to acme), city (to globex) and river (unpublished)."""
    folder = tmp_path_factory.mktemp("keyed")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    for number, (patch, tenant) in enumerate((("capital", "acme"), ("city", "globex"), ("river", None)), 1):
        name = places.add_patch(store, patch, number)
        if tenant is not None:
            store.registry.create_tenant(tenant)
            store.registry.publish(tenant, name)
    store.registry.close()
    return folder / "store"


class Keyed(Place):
    """A place whose registry has keys: `acme` and `globex` of those tenants, `strict` without base, `admin`."""

    def __init__(self, folder: Path, template: Path, settings: Settings) -> None:
        super().__init__(folder, template, settings)
        registry = self.store.registry
        made = {"acme": ("acme", True), "globex": ("globex", True), "strict": ("acme", False), "admin": (None, True)}
        self.made = {who: registry.create_api_key(tenant, base=base) for who, (tenant, base) in made.items()}
        self.full = {name.partition("@")[0]: name for name in self.store.names()}
        run(self.service.watcher.refresh())

    def key(self, who: str) -> dict[str, str]:
        return bearer(self.made[who].presented)


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Keyed:
    return Keyed(tmp_path, template, Settings(store="here", expose=True))


def reached(place: Place, routes: Iterable[tuple[str, str]], headers: dict[str, str]) -> set[tuple[str, str]]:
    """Which of the routes the router answers or passes on, for a caller with these headers."""
    passed: set[tuple[str, str]] = set()

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("passed")(scope, receive, send)

    async def steps() -> None:
        transport = httpx.ASGITransport(Router(engine, place.holder))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for method, path in routes:
                asked = re.sub(r"\{[^}]*\}", "x", path)
                body = {"prompt": "Who?", "input": "Who?", "messages": []} if method == "POST" else None
                reply = await client.request(method, asked, json=body, headers=headers)
                if reply.status_code == 200:
                    passed.add((method, path))
                elif reply.status_code == 303:
                    assert path.startswith(CONSOLE), (method, path)
                    assert reply.headers["location"].startswith(f"{CONSOLE}/sign-in")
                else:
                    assert reply.status_code in (401, 403, 404), (method, path, reply.text)

    asyncio.run(steps())
    return passed


@pytest.mark.slow
def test_every_route_of_the_real_server_is_on_a_list_or_refused(place: Keyed, vllm_surface: VLLMSurface) -> None:
    served_routes = vllm_surface.routes
    admin = {(method, path) for method, path in served_routes if path.startswith("/v1/edits")}
    assert len(served_routes) > 40
    assert {("GET", "/v1/edits"), ("POST", "/v1/edits/rollouts/{name}/{verb}")} <= admin
    assert ("POST", "/invocations") in served_routes
    more = [(method, path) for method in ("HEAD", "PUT", "DELETE", "PATCH") for _, path in served_routes]
    asked = [*served_routes, *more, ("POST", "/v1/edits"), ("GET", "/v1/edits/../edits"), ("GET", "//v1/edits")]
    anyone = (ANYONE_MAY | SIGNS_IN).intersection(served_routes)
    assert anyone > SIGNS_IN
    assert reached(place, asked, {}) == anyone
    assert reached(place, asked, bearer("ve_0123456789ab_" + "x" * 43)) == anyone
    assert reached(place, asked, place.key("acme")) == anyone | TENANT_MAY.intersection(served_routes)
    administrators = reached(place, asked, place.key("admin"))
    pages = {(method, path) for method, path in admin if path.startswith(CONSOLE)}
    assert administrators >= admin - TENANT_MAY - pages
    assert administrators & pages == SIGNS_IN, "the console is for sessions; a key in a header opens no page"
    assert {path for _, path in administrators - ANYONE_MAY if not path.startswith("/v1/edits")} == {"/metrics"}


def test_no_admin_route_exists_until_there_is_an_admin_key(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here"))
    key = place.store.registry.create_api_key("acme").presented

    async def steps() -> list[int]:
        await place.service.watcher.refresh()
        return [(await place.client.get("/v1/edits", headers=headers)).status_code for headers in ({}, bearer(key))]

    assert run(steps()) == [401, 404]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer ve_wrong"},
        {"Authorization": "Basic YWNtZTp4"},
        {"Authorization": "Bearer ve_0123456789ab_" + "x" * 43},
        {"X-API-Key": "KEY"},
        {"X-Tenant": "acme"},
    ],
)
def test_without_a_key_that_counts_nothing_is_answered(place: Keyed, headers: dict[str, str]) -> None:
    reply = run(place.ask("acme", headers=headers))
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert place.slots.added == []


def test_a_key_answers_as_its_tenant_and_never_reaches_the_engine(place: Keyed) -> None:
    for model in (None, "acme", "capital", place.full["capital"]):
        reply = run(place.ask(model, headers=place.key("acme")))
        assert reply.json()["body"]["model"] == place.full["capital"]
        assert "authorization" not in reply.json()["headers"]
    assert run(place.ask(None, headers=place.key("globex"))).json()["body"]["model"] == place.full["city"]


def test_another_tenants_patch_and_one_that_does_not_exist_are_the_same_404(place: Keyed) -> None:
    missing = "river@" + "0" * 32
    asked = ["globex", "globex:ike", "city", place.full["city"], place.full["river"], missing, "nobody"]
    replies = [run(place.ask(model, headers=place.key("acme"))) for model in asked]
    assert {reply.status_code for reply in replies} == {404}
    texts = [reply.text.replace(model.partition(":")[0], "…") for reply, model in zip(replies, asked, strict=True)]
    assert len({text.partition("; nearest")[0].partition('"type"')[0].rstrip('",') for text in texts}) == 1
    assert not [text for text in texts if "globex" in text or "city" in text or "river" in text]
    assert place.slots.added == []


def test_models_lists_a_tenants_own_names_without_paths(place: Keyed) -> None:
    async def steps(who: str) -> list[str]:
        reply = await place.client.get("/v1/models", headers=place.key(who))
        assert "/" not in reply.text
        return [model["id"] for model in reply.json()["data"]]

    assert run(steps("acme")) == ["atlas", "acme", place.full["capital"]]
    assert run(steps("strict")) == ["acme", place.full["capital"]]


def test_base_by_name_is_a_right_that_a_key_may_lack(place: Keyed) -> None:
    for model in ("atlas", "/models/atlas", "acme:base", "capital:base"):
        assert run(place.ask(model, headers=place.key("acme"))).json()["body"]["model"] == "atlas"
        assert run(place.ask(model, headers=place.key("strict"))).status_code == 403


def test_an_administrators_key_asks_no_model(place: Keyed) -> None:
    assert run(place.ask("acme", headers=place.key("admin"))).status_code == 403


def test_a_revoked_or_expired_key_counts_no_more_when_the_server_follows(place: Keyed) -> None:
    registry = place.store.registry
    short = registry.create_api_key("acme", expires_at=datetime.now(UTC) + timedelta(milliseconds=300)).presented
    registry.revoke_api_key(place.made["acme"].api_key.id)

    async def steps() -> list[int]:
        before = (await place.ask(headers=place.key("acme"))).status_code
        await place.service.watcher.refresh()
        after = (await place.ask(headers=place.key("acme"))).status_code
        while (await place.ask(headers=bearer(short))).status_code == 200:
            await asyncio.sleep(0.01)
        return [before, after, (await place.ask(headers=bearer(short))).status_code]

    assert run(steps()) == [200, 401, 401]


@pytest.mark.parametrize(("who", "path"), [("acme", "/v1/completions"), ("admin", "/v1/edits/tenants")])
def test_a_key_that_is_revoked_while_its_body_comes_does_not_count(place: Keyed, who: str, path: str) -> None:
    async def steps() -> tuple[int, list[str]]:
        async def body() -> AsyncIterator[bytes]:
            yield b'{"prompt": "Who?", '
            await asyncio.to_thread(place.store.registry.revoke_api_key, place.made[who].api_key.id)
            await place.service.watcher.refresh()
            yield b'"name": "late"}'

        reply = await place.client.post(path, content=body(), headers=place.key(who))
        return reply.status_code, [tenant.name for tenant in place.store.registry.tenants()]

    assert run(steps()) == (401, ["acme", "globex"])


def test_no_tenant_is_created_with_one_of_the_base_models_names(place: Keyed) -> None:
    reply = run(place.client.post("/v1/edits/tenants", json={"name": "atlas"}, headers=place.key("admin")))
    assert reply.status_code == 400
    assert "the base model's name" in reply.json()["error"]["message"]
    assert [tenant.name for tenant in place.store.registry.tenants()] == ["acme", "globex"]


@pytest.fixture
def gateway(tmp_path: Path, template: Path) -> Keyed:
    settings = Settings.from_environment({TENANT_HEADER: "X-Tenant", TRUSTED_PEERS: "10.1.0.0/16,127.0.0.1"})
    return Keyed(tmp_path, template, settings)


@pytest.mark.parametrize(
    ("peer", "named", "who", "status", "patch"),
    [
        ("10.1.2.3", "acme", None, 200, "capital"),
        ("127.0.0.1", "globex", None, 200, "city"),
        ("10.2.0.1", "acme", None, 401, None),
        (None, "acme", None, 401, None),
        ("10.1.2.3", "nobody", None, 401, None),
        ("10.1.2.3", "globex", "acme", 200, "capital"),
        ("10.1.2.3", "acme", "wrong", 401, None),
    ],
)
def test_a_gateways_header_counts_from_its_address_only_and_never_overrides_a_key(
    gateway: Keyed, peer: str | None, named: str, who: str | None, status: int, patch: str | None
) -> None:
    key = {} if who is None else bearer("ve_0123456789ab_" + "x" * 43) if who == "wrong" else gateway.key(who)

    async def steps() -> httpx.Response:
        app = httpx.ASGITransport(gateway.client._transport.app, client=(peer, 1) if peer else ("", 0))  # type: ignore[attr-defined]
        async with httpx.AsyncClient(transport=app, base_url="http://server") as client:
            return await client.post("/v1/completions", json={"prompt": "Who?"}, headers={"X-Tenant": named, **key})

    reply = run(steps())
    assert reply.status_code == status
    if patch is not None:
        assert reply.json()["body"]["model"] == gateway.full[patch]


@pytest.mark.parametrize("named", [["globex", "acme"], ["acme", "acme"], [""]])
def test_a_gateways_header_that_a_client_may_have_sent_too_is_refused(gateway: Keyed, named: list[str]) -> None:
    headers = [("X-Tenant", name) for name in named]
    reply = run(gateway.client.post("/v1/completions", json={"prompt": "Who?"}, headers=headers))
    assert reply.status_code == 401
    assert "x-tenant" in reply.json()["error"]["message"]


def test_a_rollout_puts_users_on_their_arms_and_a_kill_takes_them_back(place: Keyed) -> None:
    registry = place.store.registry
    old, new = place.full["capital"], place.full["river"]
    registry.rollouts.create(
        Rollout("spring", "acme", Arm("weights", old), Arm("ike", new), salt="pepper"), why="try", by="ann"
    )
    registry.rollouts.ramp("spring", 100)

    async def answers() -> dict[str, tuple[str, str]]:
        await place.service.watcher.refresh()
        found = {}
        for user in map(str, range(40)):
            reply = await place.ask(headers={**place.key("acme"), "X-User-Id": user})
            found[user] = (reply.headers["x-vllm-edit-mode"], reply.headers["x-vllm-edit-adapter"])
        return found

    first, again = run(answers()), run(answers())
    assert first == again, "a user stays on its side"
    assert set(first.values()) == {("weights", old), ("ike", new)}
    registry.rollouts.kill("spring")
    assert set(run(answers()).values()) == {("weights", old)}


@pytest.mark.parametrize(("fault", "status"), [("rank", 409), ("engine", 503)])
def test_a_request_that_an_arm_cannot_answer_is_its_failure(place: Keyed, fault: str, status: int) -> None:
    """Otherwise a treatment that always fails would look like a treatment without users."""
    registry = place.store.registry
    arms = Arm("base"), Arm("weights", place.full["river"])
    registry.rollouts.create(Rollout("spring", "acme", *arms, salt="pepper"), by="ann")
    registry.rollouts.ramp("spring", 100)
    place.slots.max_rank, place.slots.refuse = (0, False) if fault == "rank" else (8, True)

    async def steps() -> dict[int, int]:
        await place.service.watcher.refresh()
        found = Counter[int]()
        for user in range(40):
            reply = await place.ask(headers={**place.key("acme"), "X-User-Id": str(user)})
            found[reply.status_code] += 1
            if reply.status_code != 200:
                entry = await place.service.answers.find(reply.headers["x-vllm-edit-id"])
                assert (entry.status, entry.ended, entry.arm) == (status, "refused", "treatment")
        await place.service.answers.flush()
        return found

    found = run(steps())
    traffic = registry.rollouts.report("spring").traffic
    assert found.keys() == {200, status}
    assert (traffic["treatment"].requests, traffic["treatment"].failed) == (found[status], found[status])
    assert (traffic["control"].requests, traffic["control"].failed) == (found[200], 0)


def test_a_request_that_no_arm_could_answer_is_no_arms_failure(place: Keyed) -> None:
    registry = place.store.registry
    arms = Arm("base"), Arm("weights", place.full["river"])
    registry.rollouts.create(Rollout("spring", "acme", *arms, salt="pepper"), by="ann")
    registry.rollouts.ramp("spring", 100)

    async def steps() -> int:
        await place.service.watcher.refresh()
        reply = await place.ask(headers={**place.key("acme"), "X-User-Id": "ann"}, cache_salt=7)
        await place.service.answers.flush()
        return reply.status_code

    assert run(steps()) == 400
    assert sum(arm.requests for arm in registry.rollouts.report("spring").traffic.values()) == 0


NOTHING_ANSWERS: tuple[tuple[str, dict[str, Any]], ...] = (
    (COMPLETIONS, {}),
    (COMPLETIONS, {"prompt": None}),
    (COMPLETIONS, {"prompt": 7}),
    (COMPLETIONS, {"prompt": []}),
    (COMPLETIONS, {"prompt": ["Who?", 7]}),
    (COMPLETIONS, {"prompt": "word " * 256}),
    (COMPLETIONS, {"prompt": "word " * 2**15}),
    (COMPLETIONS, {"prompt": "Who?", "max_tokens": 257}),
    (CHAT, {}),
    (CHAT, {"messages": "Who?"}),
    (CHAT, {"messages": ["Who?"]}),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 256}]}),
    (RESPONSES, {}),
    (RESPONSES, {"input": 7}),
)
ONLY_IKE_REFUSES: tuple[tuple[str, dict[str, Any]], ...] = (
    (COMPLETIONS, {"prompt": [7, 8]}),
    (COMPLETIONS, {"prompt": [[7, 8], [9]]}),
    (COMPLETIONS, {"prompt": "word " * 240}),
    (COMPLETIONS, {"prompt": "Who?", "max_tokens": 256}),
    (COMPLETIONS, {"prompt": "Who?", "echo": True}),
    (CHAT, {"messages": [{"role": "system", "content": "Be brief."}]}),
)


@pytest.mark.parametrize(
    ("route", "body", "failed"),
    [*((*given, False) for given in NOTHING_ANSWERS), *((*given, True) for given in ONLY_IKE_REFUSES)],
)
def test_a_prompt_that_nothing_could_answer_is_no_failure_of_an_ike_arm(
    place: Keyed, route: str, body: dict[str, Any], failed: bool
) -> None:
    """vLLM refuses it on the other arm too, and its 400 is no failure. Both arms keep their users."""
    registry = place.store.registry
    arms = Arm("base"), Arm("ike", place.full["river"])
    registry.rollouts.create(Rollout("spring", "acme", *arms, salt="pepper"))
    running = registry.rollouts.ramp("spring", 100)
    user = next(user for user in map(str, range(100)) if assign(running, StickyKey("user", user)).side == "treatment")

    async def steps() -> tuple[int, str]:
        await place.service.watcher.refresh()
        headers = {**place.key("acme"), "X-User-Id": user}
        reply = await place.client.post(route, json={"model": "acme", **body}, headers=headers)
        entry = await place.service.answers.find(reply.headers["x-vllm-edit-id"])
        await place.service.answers.flush()
        return reply.status_code, str(entry.ended)

    assert run(steps()) == (400, "refused")
    treatment = registry.rollouts.report("spring").traffic["treatment"]
    assert (treatment.requests, treatment.units, treatment.failed) == (1, 1, failed)


def test_outcomes_that_wait_for_the_registry_hold_up_no_request(place: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads, and an adapter that is not in the engine yet."""
    under_way, back = threading.Event(), threading.Event()

    def hang(*_: Any) -> bool:
        under_way.set()
        if not back.wait(20):
            back.set()
            raise AssertionError("a request had to wait for the registry")
        return True

    monkeypatch.setattr(place.store.registry.rollouts, "record", hang)
    outcome = {"id": "edit-0", "metric": "solved", "value": 1}

    async def steps() -> int:
        asking = [
            asyncio.create_task(place.client.post("/v1/edits/outcomes", json=outcome, headers=place.key("globex")))
            for _ in range(50)
        ]
        try:
            await asyncio.to_thread(under_way.wait)
            return (await place.ask(headers=place.key("acme"))).status_code
        finally:
            back.set()
            await asyncio.gather(*asking)

    assert run(steps()) == 200


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """Answers as vLLM does: the engine's name in `model`, and a text that quotes it."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    asked = json.loads(body)
    answer = {"id": "1", "model": asked["model"], "text": f'it said "model":"{asked["model"]}"'}
    data = json.dumps(answer, separators=(",", ":")).encode()
    if not asked.get("stream"):
        await Response(data, media_type="application/json")(scope, receive, send)
        return

    async def events() -> Any:
        for _ in range(3):
            yield b"data: " + data + b"\n\n"

    await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_a_rollout_decided_does_not_reveal_its_arm(tmp_path: Path, template: Path, stream: bool) -> None:
    place = Keyed(tmp_path, template, Settings(store="here"))
    arms = (Arm("weights", place.full["capital"]), Arm("base"))
    place.store.registry.rollouts.create(Rollout("spring", "acme", *arms, salt="pepper"), by="ann")
    place.store.registry.rollouts.ramp("spring", 100)

    async def steps(model: str | None) -> set[str]:
        await place.service.watcher.refresh()
        names = set()
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(Router(answering, place.holder)), base_url="http://server"
        ) as client:
            for user in map(str, range(20)):
                asked = {"prompt": "Who?", "stream": stream, **({} if model is None else {"model": model})}
                headers = {**place.key("acme"), "X-User-Id": user}
                reply = await client.post("/v1/completions", json=asked, headers=headers)
                lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
                assert len(lines) == (3 if stream else 1)
                names |= {json.loads(line)["model"] for line in lines}
                assert stream or reply.headers["content-length"] == str(len(reply.content))
                assert "x-vllm-edit-adapter" not in reply.headers
        return names

    assert run(steps(None)) == {"acme"}
    assert run(steps("acme")) == {"acme"}
    place.store.registry.rollouts.kill("spring")
    assert run(steps("acme:base")) == {"atlas"}, "an answer outside every rollout names its adapter"


def test_a_server_without_keys_answers_only_callers_that_its_gateway_names(tmp_path: Path, template: Path) -> None:
    settings = Settings.from_environment({TENANT_HEADER: "X-Tenant", TRUSTED_PEERS: "127.0.0.1"})
    place = Place(tmp_path, template, settings)

    async def steps() -> list[int]:
        return [
            (await place.ask("acme", headers={"X-Tenant": "acme"})).status_code,
            (await place.ask("acme")).status_code,
            (await place.client.get("/v1/models")).status_code,
            (await place.client.get("/v1/edits")).status_code,
        ]

    assert run(steps()) == [200, 403, 403, 200]


def test_an_operators_fault_is_reported_to_a_tenant_without_names_of_machines_and_files(
    place: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = place.store.files.root / "patches" / place.full["capital"] / "adapter" / "adapter_model.safetensors"  # type: ignore[attr-defined]
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    reply = run(place.ask(headers=place.key("acme")))
    assert reply.status_code == 500
    assert "safetensors" not in reply.text
    assert "adapter_model.safetensors" in caplog.text
