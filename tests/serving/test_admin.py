"""Admin routes over HTTP: the command line's verbs, for an admin key, audited under its id."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from tests.rollout.example import failing
from tests.serving import places
from tests.serving.without_engine import Place, bearer, run
from vllm_edit.errors import Unavailable
from vllm_edit.registry.api_keys import authenticate
from vllm_edit.registry.revision import Revision
from vllm_edit.registry.rollout_guard import Watch
from vllm_edit.rollout.arm import Arm
from vllm_edit.serving.server_settings import Settings


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the patches `capital` and `city`, and the first published to tenant `acme`."""
    folder = tmp_path_factory.mktemp("admin")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    first = places.add_patch(store, "capital", 1)
    places.add_patch(store, "city", 2)
    store.registry.create_tenant("acme")
    store.registry.publish("acme", first)
    store.registry.close()
    return folder / "store"


class Administered(Place):
    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder, template, Settings(store="here", expose=True))
        made = self.store.registry.create_api_key(None)
        self.key_id, self.admin = made.api_key.id, bearer(made.presented)
        self.tenant = bearer(self.store.registry.create_api_key("acme").presented)
        run(self.service.watcher.refresh())

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self.client.get(f"/v1/edits{path}", headers=self.admin, params=query)

    async def post(self, path: str, json: Any = None) -> httpx.Response:
        return await self.client.post(f"/v1/edits{path}", headers=self.admin, json=json)

    async def served(self, user: str = "ann") -> tuple[str, str]:
        """(adapter, answer's id) of a request of the tenant's."""
        reply = await self.ask(headers={**self.tenant, "X-User-Id": user})
        assert reply.status_code == 200, reply.text
        return reply.headers["x-vllm-edit-adapter"], reply.headers["x-vllm-edit-id"]


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Administered:
    return Administered(tmp_path, template)


def test_publish_and_rollback_hold_for_the_next_request_and_name_the_servers_that_follow(place: Administered) -> None:
    async def steps() -> list[Any]:
        published = await place.post("/tenants/acme/publish", {"patch": "city", "why": "new", "who": "ann"})
        after, _ = await place.served()
        rolled = await place.post("/tenants/acme/rollback")
        again, _ = await place.served()
        return [published.json(), after, rolled.json(), again]

    published, after, rolled, again = run(steps())
    assert (published["active"], after, rolled["active"], again) == (
        place.second,
        place.second,
        place.first,
        place.first,
    )
    assert published["acknowledged"]["missing"] == []
    assert len(published["acknowledged"]["servers"]) == 1
    newest = place.store.registry.audit("acme", 2)
    assert [(row.what, row.who, row.why) for row in newest] == [
        ("tenant.publish", f"key {place.key_id} (ann)", "new"),
        ("tenant.rollback", f"key {place.key_id}", ""),
    ]


def test_publishing_what_is_served_already_says_that_nothing_changed(place: Administered) -> None:
    async def steps() -> list[Any]:
        return [(await place.post("/tenants/acme/publish", {"patch": "city", "why": why})).json() for why in "ab"]

    assert [answer["changed"] for answer in run(steps())] == [True, False]
    assert [row.why for row in place.store.registry.audit("acme", 1)] == ["a"], "the second reason is not recorded"


def test_a_patch_that_was_just_compiled_can_be_published(place: Administered) -> None:
    new = places.add_patch(place.store, "river", 5)
    assert run(place.post("/tenants/acme/publish", {"patch": "river"})).json()["active"] == new


def test_a_patch_that_the_engine_cannot_apply_is_not_published(place: Administered) -> None:
    place.slots.max_rank = 0
    assert run(place.post("/tenants/acme/publish", {"patch": "city"})).status_code == 409
    assert place.store.registry.active("acme") == place.first


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tenants/nobody/publish", {"patch": "city"}, 404),
        ("/tenants/acme/publish", {"patch": "nothing"}, 404),
        ("/tenants/acme/publish", {"patch": "../x"}, 404),
        ("/tenants/acme/publish", {"patch": "file:///etc/passwd"}, 404),
        ("/tenants/acme/publish", {}, 400),
        ("/tenants/acme/publish", {"patch": "city", "path": "/tmp"}, 400),
        ("/tenants/acme/publish", {"patch": "x" * 1000}, 400),
        ("/tenants/acme/publish", ["city"], 400),
        ("/tenants/acme/publish", {"patch": "city", "valid_until": "9999-12-31T23:59:59-14:00"}, 400),
        ("/tenants/acme/keys", {"expires_at": "9999-12-31T23:59:59-14:00"}, 400),
        ("/keys", {"expires_at": "9999-12-31T23:59:59-14:00"}, 400),
        ("/tenants", {"name": "globex", "who": "ann\nkey 0123456789ab"}, 400),
        ("/tenants", {"name": "globex", "who": "ann\u2028bob"}, 400),
        ("/tenants/acme/publish", {"patch": "city", "who": "ann\tbob"}, 400),
        ("/tenants/acme/publish", {"patch": "city", "who": "\u202eann"}, 400),
        ("/tenants/acme/publish", {"patch": "city", "who": " "}, 400),
        ("/tenants/acme/publish", {"patch": "city", "why": " "}, 400),
        ("/tenants/acme/publish", {"patch": "city", "override": " "}, 400),
        ("/rollouts/spring/kill", {"who": " "}, 400),
        ("/gc", {"remove": True, "who": "ann\u200b"}, 400),
        ("/tenants", {"name": "ACME"}, 400),
        ("/tenants", {"name": "acme"}, 400),
        ("/rollouts/spring/ramp", {"percent": "NaN"}, 400),
        ("/rollouts/spring/ramp", {"percent": 101}, 400),
        ("/rollouts/spring/ramp", {}, 400),
        ("/tenants/acme/holdout", {"percent": 100}, 400),
        ("/tenants/acme/holdout", {}, 400),
        ("/tenants/globex/holdout", {"percent": 5}, 404),
        ("/rollouts", {"name": "s", "tenant": "acme", "treatment": "city", "range": "40..0"}, 400),
        ("/rollouts/spring/ramp", {"percent": 5, "schedule": "1% 1h, 10%"}, 400),
        ("/rollouts/spring/ramp", {"schedule": "10% 1h, 5%"}, 400),
        ("/rollouts", {"name": "s", "tenant": "acme", "treatment": "city", "limits": ["errors"]}, 400),
        ("/rollouts", {"name": "s", "tenant": "acme", "treatment": "city", "limits": ["solved=kill"]}, 400),
        ("/rollouts/spring/shadow", {"percent": 101}, 400),
        ("/rollouts/spring/shadow", {"percent": "NaN"}, 400),
        ("/rollouts/spring/shadow", {}, 400),
        ("/rollouts/spring/shadow", {"percent": 5}, 404),
        ("/rollouts", {"name": "s", "tenant": "acme", "treatment": "city", "shadow_texts": True}, 400),
        ("/rollouts/spring/kill", None, 404),
        ("/rollouts/spring/explode", None, 400),
        ("/keys/0123456789ab/revoke", None, 404),
    ],
)
def test_bad_input_is_one_clear_line_and_changes_nothing(
    place: Administered, path: str, body: Any, status: int
) -> None:
    before = place.store.registry.generation()
    reply = run(place.post(path, body))
    assert reply.status_code == status, reply.text
    assert "\n" not in reply.json()["error"]["message"]
    assert len(reply.content) < 1000
    assert place.store.registry.generation() == before


@pytest.mark.parametrize("raw", [b'{"percent": NaN}', b"{", b"\xff", b"[" * 50_000, b'{"percent": 1e999}'])
def test_a_body_that_is_not_json_is_a_bad_request(place: Administered, raw: bytes) -> None:
    headers = {**place.admin, "Content-Type": "application/json"}
    reply = run(place.client.post("/v1/edits/rollouts/spring/ramp", content=raw, headers=headers))
    assert reply.status_code == 400


def test_a_user_that_no_database_can_hold_is_a_bad_request(place: Administered) -> None:
    raw = rb'{"name": "spring", "tenant": "acme", "treatment": "city", "users": {"\ud800": "control"}}'
    reply = run(
        place.client.post(
            "/v1/edits/rollouts", content=raw, headers={**place.admin, "Content-Type": "application/json"}
        )
    )
    assert reply.status_code == 400
    assert "surrogate" in reply.json()["error"]["message"]


def test_a_body_over_the_limit_is_refused(place: Administered) -> None:
    assert run(place.post("/tenants", {"name": "x" * 2**20})).status_code == 413


def test_tenants_and_keys_over_http_work_at_once(place: Administered) -> None:
    async def steps() -> list[Any]:
        await place.post("/tenants", {"name": "globex"})
        made = (await place.post("/tenants/globex/keys", {"base": False, "label": "shop"})).json()
        asked = await place.ask(headers=bearer(made["key"]))
        base = await place.ask("atlas", headers=bearer(made["key"]))
        listed = (await place.get("/tenants/globex/keys")).text
        await place.post(f"/keys/{made['id']}/revoke", {"why": "left in a log"})
        return [asked.status_code, base.status_code, made["key"] in listed, "hash" in listed,
                (await place.ask(headers=bearer(made["key"]))).status_code]  # fmt: skip

    assert run(steps()) == [200, 403, False, False, 401]


def test_a_rollout_over_http_is_made_ramped_watched_and_killed(place: Administered) -> None:
    async def steps() -> None:
        made = await place.post(
            "/rollouts",
            {
                "name": "spring",
                "tenant": "acme",
                "treatment": "city",
                "metrics": ["solved"],
                "users": {"eve": "treatment"},
            },
        )
        assert made.json()["control"] == place.first
        assert (await place.served("eve"))[0] == place.first, "nobody is served by it before its first ramp"
        ramped = (await place.post("/rollouts/spring/ramp", {"percent": 100})).json()
        assert (ramped["share"], ramped["acknowledged"]["missing"]) == (100.0, [])
        assert (await place.served("eve"))[0] == place.second
        reported = []
        for user in map(str, range(20)):
            _, id = await place.served(user)
            outcome = {"id": id, "metric": "solved", "value": 1}
            reply = await place.client.post("/v1/edits/outcomes", headers=place.tenant, json=outcome)
            reported.append(reply.json())
        assert reported == [{"recorded": True}] * 20
        status = (await place.get("/rollouts/spring")).json()
        arms = status["arms"].values()
        assert sum(arm["requests"] for arm in arms) == 20
        assert min(arm["requests"] for arm in arms) > 0
        assert sum(sum(comparison["outcomes"].values()) for comparison in status["comparisons"]) == 20
        killed = (await place.post("/rollouts/spring/kill", {"why": "users complain"})).json()
        assert (killed["state"], (await place.served("eve"))[0]) == ("killed", place.first)

    run(steps())


def test_a_rollout_over_http_has_limits_and_follows_a_schedule(place: Administered) -> None:
    async def steps() -> None:
        asked = {"name": "spring", "tenant": "acme", "treatment": "city", "limits": ["errors=kill", "cut+1%=warn"]}
        made = (await place.post("/rollouts", asked)).json()
        assert [(limit["name"], limit["margin"], limit["action"]) for limit in made["limits"]] == [
            ("errors", 0.0, "kill"),
            ("cut", 0.01, "warn"),
        ]
        ramped = (await place.post("/rollouts/spring/ramp", {"schedule": "1% 1h, 100%"})).json()
        assert (ramped["share"], ramped["schedule"]["next"]) == (1.0, 100.0)
        status = (await place.get("/rollouts/spring")).json()
        assert [test["limit"] for test in status["limit_tests"]] == ["errors=kill", "cut+0.01=warn"]
        assert (status["decisions"], status["watched_by"]) == ([], None)
        registry = place.store.registry
        await asyncio.to_thread(registry.rollouts.expose, failing(registry.rollouts.ramp("spring", 100)))
        watch = Watch("a", "node-a:1")
        assert registry.guard.hold(watch)
        assert registry.guard.test("spring", watch)
        [decision] = (await place.get("/rollouts/spring")).json()["decisions"]
        assert (decision["server"], decision["result"]["limit"]) == ("node-a:1", "errors=kill")

    run(steps())


def test_a_rollout_over_http_has_a_shadow_that_is_switched(place: Administered) -> None:
    async def steps() -> None:
        asked = {"name": "spring", "tenant": "acme", "treatment": "city", "shadow": 5, "shadow_texts": True}
        made = (await place.post("/rollouts", asked)).json()
        assert made["shadow"] == {"percent": 5.0, "texts": True}
        assert (await place.get("/rollouts/spring")).json()["shadowed"] is None
        await place.service.watcher.refresh()
        assert (await place.served("eve"))[0] == place.first, "clients are answered as before"
        moved = (await place.post("/rollouts/spring/shadow", {"percent": 0.5, "why": "less load"})).json()
        assert (moved["shadow"], moved["acknowledged"]["missing"]) == ({"percent": 0.5, "texts": False}, [])
        assert (await place.post("/rollouts/spring/shadow", {"percent": 0})).json()["shadow"] is None
        assert (await place.post("/rollouts/spring/shadow", {"percent": 0, "texts": True})).status_code == 400
        await place.post("/rollouts/spring/kill")
        assert (await place.post("/rollouts/spring/shadow", {"percent": 5})).status_code == 400

    run(steps())
    row = place.store.registry.audit("acme")[-2]
    assert row.what == "rollout.shadow"
    assert row.who.startswith("key ")


def test_rollouts_over_http_run_in_ranges_beside_a_holdout(place: Administered) -> None:
    async def steps() -> None:
        assert (await place.post("/tenants/acme/holdout", {"percent": 5})).json()["holdout"] == 5
        for name, treatment, users in (("spring", "city", "0..40"), ("summer", "city:ike", "40..100")):
            asked = {"name": name, "tenant": "acme", "treatment": treatment, "range": users}
            made = (await place.post("/rollouts", asked)).json()
            assert made["audience"]["holdout"] == 500
            await place.post(f"/rollouts/{name}/ramp", {"percent": 100})
        reported = {(await place.served(str(user)))[0] for user in range(30)}
        assert reported == {place.first, place.second}
        assert (await place.post("/tenants/acme/holdout", {"percent": 10})).status_code == 400
        [tenant] = (await place.get("/tenants")).json()
        assert (tenant["rollout"], tenant["beside"]) == ("spring", ["summer"])

    run(steps())


def test_a_patch_that_is_published_while_a_rollout_is_created_is_its_control(
    place: Administered, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = place.service.store.registry

    def then_publish(tenant: str) -> Arm:
        registry.publish(tenant, place.second, override="urgent", by="ann")
        return Arm("weights", place.first)

    monkeypatch.setattr(registry, "served", then_publish)
    made = run(place.post("/rollouts", {"name": "spring", "tenant": "acme", "treatment": "base"}))
    assert made.json()["control"] == place.second


def test_the_next_rollouts_control_and_the_listing_show_the_patch_that_the_tenant_is_served(
    place: Administered,
) -> None:
    async def steps() -> None:
        await place.post("/rollouts", {"name": "spring", "tenant": "acme", "treatment": "city:ike"})
        await place.post("/rollouts/spring/ramp", {"percent": 1})
        await place.post("/rollouts/spring/promote")
        [answered] = (await place.get("")).json()["tenants"]
        assert answered == {"tenant": "acme", "active": place.second, "rollout": "spring", "beside": []}
        [tenant] = (await place.get("/tenants")).json()
        assert (tenant["active"], tenant["mode"], tenant["rollout"]) == (place.second, "ike", "spring")
        made = await place.post("/rollouts", {"name": "summer", "tenant": "acme", "treatment": "capital"})
        assert made.json()["control"] == f"{place.second}:ike"

    run(steps())


def test_outcomes_are_for_the_tenant_of_the_answer_and_count_once(place: Administered) -> None:
    registry = place.store.registry

    async def steps() -> list[Any]:
        await place.post("/rollouts", {"name": "spring", "tenant": "acme", "treatment": "city", "metrics": ["solved"]})
        await place.post("/rollouts/spring/ramp", {"percent": 100})
        other = bearer((await asyncio.to_thread(_key_of_another, registry)).presented)
        await place.service.watcher.refresh()
        _, id = await place.served()

        async def report(headers: dict[str, str], id: str = id, value: Any = 1) -> int:
            body = {"id": id, "metric": "solved", "value": value}
            return (await place.client.post("/v1/edits/outcomes", headers=headers, json=body)).status_code

        return [
            await report(other),
            await report(place.tenant, "edit-0"),
            await report(place.admin),
            await report({}),
            await report(place.tenant),
            await report(place.tenant),
            await report(place.tenant, value=0),
            await report(place.tenant, value=7),
        ]

    assert run(steps()) == [404, 404, 403, 401, 200, 200, 400, 400]


def _key_of_another(registry: Any) -> Any:
    registry.create_tenant("globex")
    return registry.create_api_key("globex")


def test_the_log_resolves_an_answer_for_an_administrator_also_after_a_restart(
    place: Administered, tmp_path: Path
) -> None:
    async def steps() -> tuple[str, Any]:
        adapter, id = await place.served()
        await place.service.close()
        return id, adapter

    id, adapter = run(steps())
    again = Place(tmp_path / "again", place.store.files.root, Settings(store="here"))  # type: ignore[attr-defined]
    found = run(again.client.get(f"/v1/edits/answers/{id}", headers=place.admin)).json()
    assert (found["adapter"], found["tenant"], found["status"], found["reason"]) == (
        adapter, "acme", 200, "TARGETING_MATCH")  # fmt: skip
    assert "prompt" not in found or found["prompt"] is None
    assert run(again.client.get("/v1/edits/answers/edit-0", headers=place.admin)).status_code == 404


def test_patches_audit_and_the_description_are_returned(place: Administered) -> None:
    async def steps() -> list[Any]:
        return [
            (await place.get("/patches/capital")).json()["entry"]["name"],
            (await place.get("/audit", limit=1)).json()[0]["what"],
            (await place.get("/audit/verify")).json()["problems"],
            (await place.get("/verify")).json()["problems"],
            (await place.post("/gc", {})).json(),
            sorted((await place.get("/openapi.json")).json()["paths"])[:2],
        ]

    answered = run(steps())
    assert answered[:4] == [place.first, "key.create", [], []]
    assert answered[4:] == [
        {"would_remove": [], "removed": [], "retired": [], "missing": []},
        ["/v1/edits", "/v1/edits/answers/{id}"],
    ]


def test_a_removal_by_gc_over_http_is_audited_under_the_key(place: Administered) -> None:
    old = place.second
    places.add_patch(place.store, "city", 3)

    async def steps() -> Any:
        watching = asyncio.create_task(place.service.watcher.run())  # the server reports drained patches
        try:
            return (await place.post("/gc", {"remove": True, "wait_s": 60, "who": "ann"})).json()["removed"]
        finally:
            watching.cancel()

    assert run(steps()) == [old]
    rows = {row.what: row.who for row in place.store.registry.audit(newest=2)}
    assert rows == dict.fromkeys(("patch.retire", "patch.remove"), f"key {place.key_id} (ann)")


def test_a_change_is_not_reported_as_failed_if_the_registry_goes_down_after_it(
    place: Administered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated rollback would take back another publication."""

    async def steps() -> httpx.Response:
        await place.post("/tenants/acme/publish", {"patch": "city"})
        revision = place.store.registry.revision

        def down() -> Revision:
            monkeypatch.setattr(place.store.registry, "revision", revision)
            raise Unavailable("the registry is down")

        monkeypatch.setattr(place.store.registry, "revision", down)
        return await place.post("/tenants/acme/rollback")

    reply = run(steps())
    assert reply.status_code == 503
    assert "the change is made, do not repeat it" in reply.json()["error"]["message"]
    assert place.store.registry.active("acme") == place.first


@pytest.mark.parametrize("path", ["/keys", "/tenants/acme/keys"])
def test_a_new_key_is_returned_if_the_registry_goes_down_after_it(
    place: Administered, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Nobody could read its secret again."""

    async def steps() -> httpx.Response:
        def down() -> Revision:
            raise OperationalError("", {}, Exception("the registry is down"))

        monkeypatch.setattr(place.store.registry, "revision", down)
        return await place.post(path, {"label": "shop"})

    reply = run(steps())
    assert reply.status_code == 200
    principal = authenticate(place.store.registry.snapshot().api_keys, reply.json()["key"], datetime.now(UTC))
    assert principal is not None
    assert principal.api_key_id == reply.json()["id"]
