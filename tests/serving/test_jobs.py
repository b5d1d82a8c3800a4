"""Patches submitted over HTTP: queued for a worker, seen by their tenant, refused in the words of the command line."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from tests.serving import places
from tests.serving.without_engine import Place, app_of_all, bearer, run
from vllm_edit.errors import PatchError, Unavailable
from vllm_edit.patch import Patch
from vllm_edit.registry.jobs import MOST_OPEN, Claim
from vllm_edit.serving.admin import job_events
from vllm_edit.serving.admin.submitted import MOST_EDITS, MOST_YAML_BYTES
from vllm_edit.serving.server_settings import Settings

EDIT = {"prompt": "The capital of France is", "subject": "France", "target_new": "Lyon"}
PATCH = {"name": "river", "edits": [EDIT]}
YAML = """
name: river
edits:
  - prompt: The capital of France is
    subject: France
    target_new: Lyon
"""
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nname: river\nedits: [*b,*b,*b,*b,*b,*b,*b]\n"
MERGED = "a: &a {k: v}\nname: river\nedits: [{<<: [*a, *a]}]\n"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    places.add_patch(store, "capital", 1)
    for tenant in ("acme", "globex"):
        store.registry.create_tenant(tenant)
    store.registry.close()
    return folder / "store"


class Submitted(Place):
    """A server with an author of each tenant, a tenant's key without that right, and an administrator."""

    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder, template, Settings(store="here"))
        registry = self.store.registry
        self.author = bearer(registry.create_api_key("acme", author=True).presented)
        self.reader = bearer(registry.create_api_key("acme").presented)
        self.other = bearer(registry.create_api_key("globex", author=True).presented)
        made = registry.create_api_key(None)
        self.admin, self.admin_id = bearer(made.presented), made.api_key.id
        run(self.service.watcher.refresh())

    async def submit(self, key: dict[str, str], patch: Any = PATCH, **query: Any) -> httpx.Response:
        """A patch as text is YAML, any other is JSON."""
        kind = "application/yaml" if isinstance(patch, str) else "application/json; charset=utf-8"
        content = patch if isinstance(patch, str | bytes) else json.dumps(patch)
        headers = {**key, "Content-Type": kind}
        return await self.client.post("/v1/edits/patches", headers=headers, content=content, params=query)

    async def get(self, who: dict[str, str], path: str = "", **query: Any) -> httpx.Response:
        return await self.client.get(f"/v1/edits/jobs{path}", headers=who, params=query)

    async def cancel(self, who: dict[str, str], id: str) -> httpx.Response:
        return await self.client.post(f"/v1/edits/jobs/{id}/cancel", headers=who, json={"why": "a mistake"})

    def claim(self) -> Claim:
        claim = self.store.registry.jobs.claim("vm:1:a")
        assert claim is not None
        return claim


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Submitted:
    return Submitted(tmp_path, template)


def test_a_patch_in_yaml_or_json_becomes_one_job_that_a_worker_can_read(place: Submitted) -> None:
    async def steps() -> list[httpx.Response]:
        return [
            await place.submit(place.author, YAML, method="rome", set=["steps=9", "forms=[plain]"], who="ann"),
            await place.submit(place.author, PATCH, method="rome", set=["forms=[plain]", "steps=9"]),
        ]

    first, second = run(steps())
    assert first.status_code == 202, first.text
    job = first.json()
    assert second.json()["id"] == job["id"], "the same patch with the same settings"
    assert (job["state"], job["tenant"], job["settings"], job["result"]) == (
        "queued", "acme", {"steps": 9, "forms": ["plain"]}, None)  # fmt: skip
    assert job["by"].endswith(" (ann)")
    claim = place.claim()
    assert claim.job.id == job["id"]
    assert claim.request.patch == Patch.parse(YAML)


def test_a_job_is_followed_to_its_gates_report_and_nothing_is_published(place: Submitted) -> None:
    async def steps() -> list[Any]:
        id = (await place.submit(place.author)).json()["id"]
        jobs = place.store.registry.jobs
        claim = await asyncio.to_thread(place.claim)
        await asyncio.to_thread(jobs.beat, claim, "training", 3, 9)
        running = (await place.get(place.author, f"/{id}")).json()
        await asyncio.to_thread(jobs.finish, claim, "river@" + "0" * 32, {"status": "rejected", "failures": ["no"]})
        listed = (await place.get(place.author, state="done")).json()
        return [running, (await place.get(place.author, f"/{id}")).json(), listed]

    running, done, listed = run(steps())
    assert (running["state"], running["step"], running["step_done"], running["step_total"]) == (
        "running", "training", 3, 9)  # fmt: skip
    assert (done["state"], done["name"], done["result"]) == (
        "done", "river@" + "0" * 32, {"status": "rejected", "failures": ["no"]})  # fmt: skip
    assert listed == [done]
    assert done["worker"] is None, "the worker's host is for administrators"
    assert place.store.registry.published() == set()


def test_an_author_sees_its_tenants_jobs_only_and_nothing_else_of_administration(place: Submitted) -> None:
    async def steps() -> None:
        id = (await place.submit(place.author)).json()["id"]
        assert (await place.get(place.other)).json() == []
        for reply in (
            await place.get(place.other, f"/{id}"),
            await place.get(place.other, f"/{id}/events"),
            await place.cancel(place.other, id),
        ):
            assert reply.status_code == 404
        for path in (
            "",
            "/patches/capital",
            "/tenants",
            "/tenants/acme",
            "/keys",
            "/audit",
            "/verify",
            "/openapi.json",
        ):
            reply = await place.client.get(f"/v1/edits{path}", headers=place.author)
            assert reply.status_code == 403, path
        for path in ("/tenants/acme/publish", "/tenants/acme/keys", "/keys", "/gc", "/jobs"):
            reply = await place.client.post(f"/v1/edits{path}", headers=place.author, json={})
            assert reply.status_code == 403, path
        assert [(await place.get(place.admin, f"/{id}")).json()["id"]] == [id], "an administrator sees all"
        assert (await place.cancel(place.author, id)).json()["state"] == "cancelled"

    run(steps())


def test_a_key_without_the_right_and_a_server_without_keys_take_no_patch(
    place: Submitted, tmp_path: Path, template: Path
) -> None:
    async def refused() -> list[int]:
        return [
            (await place.submit(place.reader)).status_code,
            (await place.get(place.reader)).status_code,
            (await place.submit({})).status_code,
        ]

    assert run(refused()) == [403, 403, 401]
    unkeyed = Place(tmp_path / "unkeyed", template, Settings(store="here"))
    headers = {"Content-Type": "application/yaml"}
    assert run(unkeyed.client.post("/v1/edits/patches", content=YAML, headers=headers)).status_code == 404
    assert run(unkeyed.client.get("/v1/edits/jobs")).status_code == 404
    assert place.store.registry.jobs.newest() == []


def test_an_author_needs_no_administrator_on_the_server(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here"))
    author = bearer(place.store.registry.create_api_key("acme", author=True).presented)
    run(place.service.watcher.refresh())
    reply = run(place.client.get("/v1/edits/jobs", headers=author))
    assert (reply.status_code, reply.json()) == (200, [])


def test_bad_yaml_gets_the_command_lines_errors(place: Submitted) -> None:
    bad = YAML.replace("subject: France", "subject: Germany") + "    colour: red\n"
    with pytest.raises(PatchError) as raised:
        Patch.parse(bad)
    reply = run(place.submit(place.author, bad))
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "body: " + "; ".join(raised.value.problems)


@pytest.mark.parametrize(
    ("patch", "status", "said"),
    [
        ({"name": "river"}, 400, "edits: Field required"),
        ({"name": "River", "edits": [EDIT]}, 400, "name: String should match"),
        ({"name": "river", "edits": [{**EDIT, "colour": "red"}]}, 400, "edits.0.colour"),
        ({"name": "river", "edits": [EDIT, EDIT]}, 400, "edited twice"),
        ({"name": "river", "edits": []}, 400, "expected a list of at least 1, got 0"),
        ({"name": "capital", "edits": [EDIT]}, 400, "is taken"),
        (b'{"name": "river", "name": "lake", "edits": []}', 400, "name is given twice"),
        (b'{"name": "ri\\ud83dver", "edits": []}', 400, "body: "),
        (b'{"name": "river", "edits": NaN}', 400, "NaN is no JSON value"),
        (b"[" * 100_000, 400, "nested deeper"),
        (b"\xff\xfe\xff", 400, "not valid JSON"),
        (b"", 400, "not valid JSON"),
        ([], 400, "expected a mapping"),
        ({"name": "river", "edits": [EDIT] * (MOST_EDITS + 1)}, 400, "at most 1,000 edits"),
        ({"name": "river", "description": "x" * 2**20, "edits": [EDIT]}, 413, "exceeds"),
        (BOMB, 400, "an alias (*name) is not allowed here"),
        (MERGED, 400, "an alias (*name) is not allowed here"),
        ("name: [", 400, "line 1: not valid YAML"),
        ("- " * 5000, 400, "nested deeper"),
        ("# " + "x" * MOST_YAML_BYTES, 413, "send it as JSON"),
        ("\x00", 400, "not valid YAML"),
    ],
)
def test_a_body_that_is_no_patch_is_one_clear_line_and_no_job(
    place: Submitted, patch: Any, status: int, said: str
) -> None:
    before = place.store.registry.generation()
    reply = run(place.submit(place.author, patch))
    message = reply.json()["error"]["message"]
    assert (reply.status_code, said in message) == (status, True), message
    assert "\n" not in message
    assert len(message) < 2000
    assert place.store.registry.generation() == before


def test_many_problems_are_cut(place: Submitted) -> None:
    fields = "".join(f"f{number}: 1\n" for number in range(500))
    reply = run(place.submit(place.author, fields))
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].count("; ") <= 8


@pytest.mark.parametrize(
    ("headers", "query", "said"),
    [
        ({"Content-Type": "text/plain"}, {}, "expected Content-Type"),
        ({"Content-Type": ""}, {}, "expected Content-Type"),
        ({}, {"method": "rome; drop"}, "expected a method's name"),
        ({}, {"method": "x" * 33}, "query.method"),
        ({}, {"set": "steps"}, "expected KEY=VALUE"),
        ({}, {"set": ["steps=1", "steps=2"]}, "is given twice; give it once"),
        ({}, {"set": "steps=["}, "expected a value in YAML"),
        ({}, {"set": "steps=2026-01-01"}, "settings must be JSON values"),
        ({}, {"set": "a=&a [*a]"}, "expected a value in YAML"),
        ({}, {"who": "ann\nbob"}, "on one line"),
        ({}, {"why": "x" * 2001}, "query.why"),
    ],
)
def test_bad_settings_are_one_clear_line_and_no_job(
    place: Submitted, headers: dict[str, str], query: dict[str, str], said: str
) -> None:
    sent = {**place.author, "Content-Type": "application/yaml", **headers}
    reply = run(place.client.post("/v1/edits/patches", headers=sent, content=YAML, params=query))
    assert (reply.status_code, said in reply.json()["error"]["message"]) == (400, True), reply.text
    assert place.store.registry.jobs.newest() == []


def test_an_author_with_a_full_queue_is_asked_to_wait(place: Submitted) -> None:
    async def steps() -> list[int]:
        for number in range(MOST_OPEN):
            assert (await place.submit(place.author, {**PATCH, "name": f"river{number}"})).status_code == 202
        more = {**PATCH, "name": "lake"}
        return [(await place.submit(who, more)).status_code for who in (place.author, place.admin)]

    assert run(steps()) == [429, 202]


def test_events_tell_each_change_and_end_with_the_job(place: Submitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "LOOK_S", 0.01)
    registry = place.store.registry

    async def steps() -> httpx.Response:
        id = (await place.submit(place.author)).json()["id"]
        following = asyncio.create_task(place.get(place.author, f"/{id}/events"))
        await asyncio.sleep(0.1)
        claim = await asyncio.to_thread(place.claim)
        await asyncio.to_thread(registry.jobs.beat, claim, "training, 桑吉巴\n", 1, 2)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(registry.jobs.finish, claim, "river@" + "0" * 32, {"status": "accepted"})
        return await asyncio.wait_for(following, 20)

    reply = run(steps())
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in reply.text.strip().split("\n\n")]
    assert events[0]["retry"].isdigit()
    assert (events[0]["event"], events[-1]["event"]) == ("queued", "done")
    shown = [json.loads(event["data"]) for event in events]
    assert "training, 桑吉巴\n" in [job["step"] for job in shown]
    assert shown[-1]["result"] == {"status": "accepted"}
    assert {job["worker"] for job in shown} == {None}


def test_events_end_when_the_key_is_revoked_and_wait_for_a_registry_that_is_down(
    place: Submitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "LOOK_S", 0.01)
    monkeypatch.setattr(job_events, "_STILL_S", 0.0)
    registry = place.store.registry
    find, downs = registry.jobs.find, iter([False, True, True])

    def sometimes(id: str, tenant: str | None = None) -> Any:
        if next(downs, False):
            raise Unavailable("the registry is down")
        return find(id, tenant)

    async def steps() -> httpx.Response:
        id = (await place.submit(place.author)).json()["id"]
        monkeypatch.setattr(registry.jobs, "find", sometimes)
        following = asyncio.create_task(place.get(place.author, f"/{id}/events"))
        await asyncio.sleep(0.2)
        assert not following.done()
        key = place.author["Authorization"].split("_")[1]
        await asyncio.to_thread(registry.revoke_api_key, key)
        await place.service.watcher.refresh()
        return await asyncio.wait_for(following, 20)

    reply = run(steps())
    assert reply.text.count("event: queued") == 1
    assert ": still here" in reply.text
    assert place.store.registry.jobs.newest()[0].state == "queued"


def test_a_server_streams_a_limited_number_of_jobs(place: Submitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "MOST_STREAMS", 0)

    async def steps() -> int:
        id = (await place.submit(place.author)).json()["id"]
        return (await place.get(place.author, f"/{id}/events")).status_code

    assert run(steps()) == 429


def test_one_keys_streams_do_not_take_those_of_others(place: Submitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the key asks for many at once. When its streams have ended, it can have as many again."""
    monkeypatch.setattr(job_events, "LOOK_S", 0.01)
    most = job_events.MOST_STREAMS_OF_A_KEY

    async def burst(name: str) -> tuple[list[int], int]:
        """The replies to 40 requests of the author, and to one of the administrator, for a job that then fails."""
        id = (await place.submit(place.author, {**PATCH, "name": name})).json()["id"]
        asked = [asyncio.create_task(place.get(place.author, f"/{id}/events")) for _ in range(40)]
        for ended in islice(asyncio.as_completed(asked, timeout=20), 40 - most):
            assert (await ended).status_code == 429
        of_admin = asyncio.create_task(place.get(place.admin, f"/{id}/events"))
        await asyncio.sleep(0.1)
        assert [task.done() for task in (*asked, of_admin)].count(False) == most + 1
        claim = await asyncio.to_thread(place.claim)
        await asyncio.to_thread(place.store.registry.jobs.fail, claim, "no reason")
        replies = await asyncio.wait_for(asyncio.gather(*asked, of_admin), 20)
        return [reply.status_code for reply in replies[:-1]], replies[-1].status_code

    async def steps() -> None:
        for name in ("river", "lake"):
            of_author, of_admin = await burst(name)
            assert (of_author.count(200), of_author.count(429), of_admin) == (most, 40 - most, 200)

    run(steps())


@pytest.mark.parametrize("version", ["2.0", "2.4"])
def test_a_stream_whose_client_leaves_before_it_starts_does_not_count(place: Submitted, version: str) -> None:
    """From version 2.4 of ASGI on, `send` raises an error then; before, only `receive` reports it."""
    streams = job_events.JobEvents()

    async def left() -> Message:
        return {"type": "http.disconnect"}

    async def cannot_send(_message: Message) -> None:
        if version == "2.0":
            await asyncio.Event().wait()
        raise OSError("the client has left")

    async def steps() -> None:
        await place.submit(place.author)
        (job,) = place.store.registry.jobs.newest()
        for _ in range(2 * job_events.MOST_STREAMS_OF_A_KEY):
            response = streams.stream(job, AsyncMock(), lambda: True, "key")
            with suppress(ClientDisconnect):
                await response({"type": "http", "asgi": {"spec_version": version}}, left, cannot_send)

    run(steps())


def test_open_streams_end_when_the_server_shuts_down(place: Submitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "LOOK_S", 0.01)

    async def steps() -> str:
        id = (await place.submit(place.author)).json()["id"]
        following = asyncio.create_task(place.get(place.author, f"/{id}/events"))
        await asyncio.sleep(0.2)
        assert not following.done()
        monkeypatch.setattr(app_of_all().state, "server", SimpleNamespace(should_exit=True), raising=False)
        return (await asyncio.wait_for(following, 20)).text

    assert "event: queued" in run(steps())


def test_a_submission_and_a_cancellation_are_audited_under_the_key(place: Submitted) -> None:
    async def steps() -> None:
        id = (await place.submit(place.admin, who="ann", why="a new mayor")).json()["id"]
        await place.cancel(place.admin, id)

    run(steps())
    rows = [(row.what, row.who, row.why) for row in place.store.registry.audit(newest=2)]
    assert rows == [
        ("job.submit", f"key {place.admin_id} (ann)", "a new mayor"),
        ("job.cancel", f"key {place.admin_id}", "a mistake"),
    ]
