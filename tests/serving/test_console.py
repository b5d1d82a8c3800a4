"""The console over HTTP: signing in, its pages, and its forms, which do what the admin routes do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.rollout.example import failing
from tests.serving import places
from tests.serving.browsing import CONSOLE, Person, notice_of, problem_of, token_of
from tests.serving.test_admin import Administered
from tests.serving.without_engine import Place, run, shared_app
from vllm_edit.registry.rollout_guard import Watch
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.audience import parse_range
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadow_report import ShadowPair
from vllm_edit.serving.console import cookies, sign_in
from vllm_edit.serving.console.display import time
from vllm_edit.serving.console.intervals import draw
from vllm_edit.serving.console.signed_out import return_address
from vllm_edit.serving.console.static_files import FOLDER
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.sessions import Sessions

PAGES = (
    "/patches",
    "/patches?search=cap&page=7",
    "/patches/capital",
    "/patches/capital?against=city",
    "/tenants",
    "/tenants/acme",
    "/tenants/acme/rollback",
    "/rollouts",
    "/rollouts/spring",
    "/rollouts/spring?live=0",
    "/rollouts/spring/promote",
    "/servers",
    "/audit?verify=1&tenant=acme&limit=200",
    "/answers",
    "/playground?model=acme",
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two patches, the first of them published to `acme`, and a rollout of the second."""
    folder = tmp_path_factory.mktemp("console")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    first = places.add_patch(store, "capital", 1)
    store.add_record(first, "gate", {"measures": [MEASURE], "failures": ["reliability: too low"], "accepted": False})
    store.add_record(first, "report", {"measures": [{"metric": "of a later version"}]})
    places.add_patch(store, "city", 2)
    store.registry.create_tenant("acme")
    store.registry.publish("acme", first)
    store.registry.close()
    return folder / "store"


MEASURE = {"mode": "weights", "metric": "reliability", "protocol": "generation", "value": 0.875, "n": 8}


class Console(Administered):
    """A signed-in person, and a stranger, who has not signed in."""

    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder, template)
        self.person = Person(self.client)
        transport = httpx.ASGITransport(shared_app(self.holder))
        self.stranger = Person(httpx.AsyncClient(transport=transport, base_url="http://server"))

    @property
    def key(self) -> str:
        return self.admin["Authorization"].removeprefix("Bearer ")

    @property
    def tenant_key(self) -> str:
        return self.tenant["Authorization"].removeprefix("Bearer ")

    async def with_rollout(self) -> None:
        asked = {"name": "spring", "tenant": "acme", "treatment": "city", "metrics": ["solved"]}
        assert (await self.post("/rollouts", asked)).status_code == 200


@pytest.fixture
def console(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setattr(sign_in, "FAILED_S", 0.0)
    made = Console(tmp_path, template)
    assert run(made.person.sign_in(made.key)).status_code == 303
    return made


def test_every_page_shows_itself_to_an_administrator_and_only_the_form_to_others(console: Console) -> None:
    async def steps() -> None:
        await console.with_rollout()
        for page in PAGES:
            shown = await console.person.get(page)
            assert shown.status_code == 200, (page, shown.text)
            assert shown.headers["content-type"].startswith("text/html")
            assert 'lang="en"' in shown.text
            refused = await console.stranger.get(page)
            assert refused.status_code == 303, page
            assert refused.headers["location"].startswith(f"{CONSOLE}/sign-in?next=")
            assert "capital" not in refused.text

    run(steps())


def test_every_page_has_headers_that_protect_it_and_no_script_or_style_of_its_own(console: Console) -> None:
    async def steps() -> None:
        await console.with_rollout()
        for page in [await console.person.get(page) for page in PAGES] + [await console.stranger.get("/sign-in")]:
            policy = page.headers["content-security-policy"].split("; ")
            assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} <= {
                *policy
            }
            assert "unsafe" not in page.headers["content-security-policy"]
            assert page.headers["x-content-type-options"] == "nosniff"
            assert page.headers["cache-control"] == "no-store"
            assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=|https?://", page.text), page.url

    run(steps())


def test_every_form_that_changes_something_has_the_sessions_token(console: Console) -> None:
    async def steps() -> None:
        await console.with_rollout()
        for page in [await console.person.get(page) for page in PAGES]:
            forms = re.findall(r"<form[^>]*method=\"post\".*?</form>", page.text, re.DOTALL)
            assert forms, "every page has the form to sign out"
            assert {token_of(form) for form in forms} == {token_of(page.text)}
            assert not re.search(r"hx-(?:post|put|delete)", re.sub(r"<form.*?>", "", page.text))

    run(steps())


def test_the_cookies_of_a_session_are_for_this_server_only_and_hold_no_key(console: Console) -> None:
    async def steps() -> httpx.Response:
        secure = {"X-Forwarded-Proto": "https"}
        token = token_of((await console.stranger.get("/sign-in")).text)
        return await console.stranger.client.post(
            f"{CONSOLE}/sign-in", data={"token": token, "key": console.key}, headers=secure
        )

    reply = run(steps())
    session = next(value for value in reply.headers.get_list("set-cookie") if value.startswith(cookies.SESSION))
    assert {"HttpOnly", "SameSite=strict", f"Path={CONSOLE}", "Secure"} <= {*session.split("; ")}
    secret = console.key.rpartition("_")[2]
    read = Sessions()._sessions.loads_unsafe(session.partition("=")[2].partition(";")[0])[1]
    assert read["api_key_id"] == console.key_id
    assert secret not in str(read)


def test_a_key_without_the_right_or_a_wrong_key_begins_no_session(console: Console) -> None:
    async def steps() -> list[Any]:
        replies = [
            await console.stranger.sign_in(key)
            for key in (console.tenant_key, f"ve_{console.key_id}_{'x' * 43}", "", "\x00", "é")
        ]
        after = await console.stranger.get("/patches")
        return [*((reply.status_code, problem_of(reply.text)) for reply in replies), after.status_code]

    *refused, after = run(steps())
    assert {status for status, _ in refused} == {401}
    assert all("no valid admin key" in message for _, message in refused)
    assert after == 303
    assert console.service.metrics.refused.labels("401")._value.get() >= len(refused)


def test_failed_sign_ins_wait_for_each_other_and_a_valid_key_does_not(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(sign_in.asyncio, "sleep", sleep)
    monkeypatch.setattr(sign_in, "FAILED_S", 4.0)
    failures = sign_in.Failures()

    async def fail(times: int) -> None:
        for _ in range(times):
            await failures.wait()

    run(fail(2))
    assert waited[1] > waited[0] + 3
    with pytest.raises(sign_in.TooManyFailures):
        run(fail(1))
    waited.clear()
    assert run(console.stranger.sign_in(console.key)).status_code == 303
    assert waited == []


@pytest.mark.parametrize(
    ("asked", "page"),
    [
        (f"{CONSOLE}/tenants?x=1", f"{CONSOLE}/tenants?x=1"),
        ("https://evil.example/v1/edits/console", CONSOLE),
        ("//evil.example", CONSOLE),
        (f"{CONSOLE}.evil.example", CONSOLE),
        (f"{CONSOLE}/\\evil.example", CONSOLE),
        (f"{CONSOLE}/a\nb", CONSOLE),
        (f"{CONSOLE}/sign-in", CONSOLE),
        ("", CONSOLE),
    ],
)
def test_signing_in_continues_only_within_the_console(console: Console, asked: str, page: str) -> None:
    assert return_address(asked) == page
    assert run(console.stranger.sign_in(console.key, next=asked)).headers["location"] == page


def test_a_person_with_a_session_is_not_asked_for_the_key_again(console: Console) -> None:
    reply = run(console.person.get("/sign-in", next=f"{CONSOLE}/audit?limit=200"))
    assert (reply.status_code, reply.headers["location"]) == (303, f"{CONSOLE}/audit?limit=200")


def test_a_revoked_key_ends_its_sessions_at_once(console: Console) -> None:
    async def steps() -> list[int]:
        before = (await console.person.get("/tenants")).status_code
        await console.post(f"/keys/{console.key_id}/revoke")
        changed = await console.person.client.post(f"{CONSOLE}/tenants", data={"token": "x", "name": "globex"})
        return [before, (await console.person.get("/tenants")).status_code, changed.status_code]

    assert run(steps()) == [200, 303, 401]


def test_signing_out_removes_the_session_from_the_browser(console: Console) -> None:
    async def steps() -> list[int]:
        left = await console.person.send("/patches", "/sign-out")
        return [left.status_code, (await console.person.get("/patches")).status_code]

    assert run(steps()) == [303, 303]
    assert cookies.SESSION not in console.client.cookies


def test_a_forged_or_old_session_and_one_of_another_servers_secret_are_none() -> None:
    sessions = Sessions("a" * 32)
    cookie = sessions.begin("0123456789ab", "ann")
    found = sessions.read(cookie)
    assert found is not None
    assert (found.api_key_id, found.name) == ("0123456789ab", "ann")
    assert Sessions("a" * 32).read(cookie) == found, "servers with one secret share their sessions"
    assert Sessions("b" * 32).read(cookie) is None
    assert Sessions().read(cookie) is None
    assert sessions.read(cookie[:-2] + "xx") is None
    assert sessions.read(sessions.note("a notice")) is None
    assert sessions.notice(cookie) is None
    for cut in (None, "", ".", "....", "é"):
        assert sessions.read(cut) is None


def test_a_session_ends_after_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_edit.serving import sessions as module

    made = Sessions()
    cookie = made.begin("0123456789ab", "")
    monkeypatch.setattr(module, "LIFE_S", -1)
    assert made.read(cookie) is None


@pytest.mark.parametrize("token", [None, "", "0" * 64, "é"])
def test_a_form_without_the_sessions_token_changes_nothing(console: Console, token: str | None) -> None:
    async def steps() -> httpx.Response:
        data = {"name": "globex"} | ({} if token is None else {"token": token})
        return await console.client.post(f"{CONSOLE}/tenants", data=data)

    before = console.store.registry.generation()
    reply = run(steps())
    assert (reply.status_code, console.store.registry.generation()) == (403, before)
    assert "not of your present session" in problem_of(reply.text)


def test_a_token_of_another_session_is_refused(console: Console) -> None:
    async def steps() -> int:
        await console.stranger.sign_in(console.key, "ben")
        token = token_of((await console.stranger.get("/tenants")).text)
        data = {"token": token, "name": "globex"}
        return (await console.client.post(f"{CONSOLE}/tenants", data=data)).status_code

    assert run(steps()) == 403


def test_publish_and_rollback_hold_at_once_and_are_audited_with_key_name_and_reason(console: Console) -> None:
    async def steps() -> list[Any]:
        tenant = "/tenants/acme"
        fields = {"patch": "city", "why": "new", "valid_until": "", "override": ""}
        published = await console.person.send(tenant, f"{tenant}/publish", fields)
        renewed = await console.client.get(f"{CONSOLE}/servers", headers={"HX-Request": "true"})
        assert 'class="notice"' not in renewed.text
        said = notice_of((await console.client.get(published.headers["location"])).text)
        again = await console.client.get(published.headers["location"])
        after, _ = await console.served()
        asked = (await console.person.get(f"{tenant}/rollback")).text
        rolled = await console.person.send(f"{tenant}/rollback", f"{tenant}/rollback", {"to": "", "why": "wrong"})
        return [published.status_code, said, "notice" in again.text, after, console.first[:20] in asked,
                rolled.status_code, (await console.served())[0]]  # fmt: skip

    status, said, shown_twice, after, named, rolled, served = run(steps())
    assert (status, rolled, after, served, named, shown_twice) == (303, 303, console.second, console.first, True, False)
    assert re.fullmatch(r"acme is served city@[0-9a-f]{12}: 1 server follows after \d+ ms\.", said)
    rows = console.store.registry.audit("acme", 2)
    author = f"key {console.key_id} (ann)"
    assert [(row.what, row.who, row.why) for row in rows] == [
        ("tenant.publish", author, "new"),
        ("tenant.rollback", author, "wrong"),
    ]


def test_an_end_without_a_zone_is_in_utc(console: Console) -> None:
    fields = {"patch": "city", "valid_until": "2099-01-31T12:00"}
    assert run(console.person.send("/tenants/acme", "/tenants/acme/publish", fields)).status_code == 303
    ends = console.store.registry.history("acme")[0].valid_until
    assert ends is not None
    assert ends.isoformat() == "2099-01-31T12:00:00+00:00"


def test_a_rollout_is_ramped_paused_promoted_and_killed(console: Console) -> None:
    async def steps() -> list[Any]:
        await console.with_rollout()
        page, states = "/rollouts/spring", []
        for verb, fields in (("ramp", {"percent": "100"}), ("pause", {}), ("promote", {}), ("kill", {"why": "bad"})):
            reply = await console.person.send(page, f"{page}/{verb}", {"why": "", **fields})
            assert reply.status_code == 303, reply.text
            states.append(console.store.registry.rollouts.find("spring").state)
        return [states, notice_of((await console.person.get(page)).text), (await console.served())[0]]

    states, said, served = run(steps())
    assert states == ["ramping", "paused", "promoted", "killed"]
    assert said.startswith("spring is killed: everyone is served control.")
    assert served == console.first
    assert console.store.registry.audit("acme", 1)[0].why == "bad"


def test_a_rollouts_page_draws_the_intervals_that_its_report_has(console: Console) -> None:
    async def steps() -> str:
        await console.with_rollout()
        await console.post("/rollouts/spring/ramp", {"percent": 100})
        for user in map(str, range(12)):
            _, id = await console.served(user)
            outcome = {"id": id, "metric": "solved", "value": int(user) % 2}
            await console.client.post("/v1/edits/outcomes", headers=console.tenant, json=outcome)
        return (await console.person.get("/rollouts/spring")).text

    page = run(steps())
    report = console.store.registry.rollouts.report("spring")
    drawn = draw(report.comparisons[0])
    for bar in (*drawn.arms, drawn.difference):
        assert bar.x_low is not None
        assert bar.x_mean is not None
        assert bar.x_high is not None
        assert 0 <= bar.x_low <= bar.x_mean <= bar.x_high <= 100
        assert f'cx="{bar.x_mean}%"' in page
    assert drawn.difference_axis.zero is not None
    assert 'hx-trigger="every 3s"' in page


@pytest.mark.parametrize(
    ("page", "path", "fields", "status", "message"),
    [
        ("/tenants/acme", "/tenants/acme/publish", {"patch": "nothing"}, 404, "no compiled patch"),
        ("/tenants/acme", "/tenants/acme/publish", {"patch": ""}, 404, "no compiled patch"),
        ("/tenants/acme", "/tenants/acme/publish", {}, 400, "body.patch: Field required"),
        ("/tenants/acme", "/tenants/acme/publish", {"patch": "city", "path": "/tmp"}, 400, "body.path: Extra inputs"),
        ("/tenants/acme", "/tenants/acme/publish", {"patch": "city", "valid_until": "soon"}, 400, "body.valid_until"),
        ("/tenants", "/tenants", {"name": "ACME"}, 400, "lower-case"),
        ("/tenants", "/tenants", {"name": "acme"}, 400, "already"),
        ("/tenants", "/rollouts/none/kill", {}, 404, "no rollout"),
        ("/tenants", "/rollouts/none/ramp", {"percent": "NaN"}, 400, "body.percent"),
        ("/tenants", "/rollouts/none/explode", {}, 400, "path.verb"),
        ("/tenants", "/tenants/nobody/rollback", {"to": ""}, 404, "no tenant"),
        ("/tenants", "/playground/answer", {"model": "acme:ike", "mode": "ike", "prompt": "x"}, 400, "body.model"),
        ("/tenants", "/playground/answer", {"model": "acme", "mode": "all", "prompt": "x"}, 400, "body.mode"),
    ],
)
@pytest.mark.parametrize("script", [False, True])
def test_an_error_is_a_page_or_for_a_script_one_line_beside_the_form(
    console: Console, page: str, path: str, fields: dict[str, str], status: int, message: str, script: bool
) -> None:
    before = console.store.registry.generation()
    reply = run(console.person.send(page, path, fields, {"HX-Request": "true"} if script else None))
    assert (reply.status_code, console.store.registry.generation()) == (status, before)
    assert message in problem_of(reply.text)
    assert ("<html" in reply.text) is not script


@pytest.mark.parametrize("page", ["/nothing", "/patches/nothing", "/tenants/nobody", "/rollouts/none", "/answers/x"])
def test_a_page_that_does_not_exist_says_so(console: Console, page: str) -> None:
    reply = run(console.person.get(page))
    assert reply.status_code == 404
    assert problem_of(reply.text)


def test_what_a_person_typed_is_text_on_every_page(console: Console) -> None:
    markup = "<script>alert(1)</script>"

    async def steps() -> list[httpx.Response]:
        await console.person.send("/tenants/acme", "/tenants/acme/publish", {"patch": "city", "why": markup})
        refused = await console.person.send("/tenants", "/tenants", {"name": markup}, {"HX-Request": "true"})
        return [
            refused,
            await console.person.get("/tenants/acme"),
            await console.person.get("/audit"),
            await console.person.get("/patches", search=markup),
            await console.person.get("/playground", model=markup),
            await console.person.get(f"/patches/{markup.replace('/', '')}"),
            await console.stranger.get("/sign-in", next=f"{CONSOLE}/{markup}"),
        ]

    for page in run(steps()):
        assert markup not in page.text
        assert "&lt;script&gt;" in page.text, page.url


def test_a_script_without_a_session_is_sent_to_the_form(console: Console) -> None:
    async def steps() -> httpx.Response:
        return await console.stranger.client.get(f"{CONSOLE}/servers", headers={"HX-Request": "true"})

    reply = run(steps())
    assert (reply.status_code, reply.headers["hx-redirect"]) == (401, f"{CONSOLE}/sign-in")


def test_an_api_key_in_a_header_opens_no_page_and_a_session_opens_no_admin_route(console: Console) -> None:
    async def steps() -> list[int]:
        with_key = await console.stranger.client.get(f"{CONSOLE}/patches", headers=console.admin)
        with_session = await console.client.get("/v1/edits/tenants")
        asked = await console.ask("acme")
        return [with_key.status_code, with_session.status_code, asked.status_code]

    assert run(steps()) == [303, 401, 401]


def test_without_an_admin_key_there_is_no_console(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here"))
    for path in ("", "/sign-in", "/patches", "/static/console.css"):
        assert run(place.client.get(f"{CONSOLE}{path}")).status_code == 404


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".LICENSE"))
def test_a_static_file_is_served_to_everybody_under_an_address_of_its_content(console: Console, name: str) -> None:
    async def steps() -> tuple[httpx.Response, str]:
        return await console.stranger.get(f"/static/{name}"), (await console.stranger.get("/sign-in")).text

    reply, page = run(steps())
    assert reply.content == (FOLDER / name).read_bytes()
    assert "immutable" in reply.headers["cache-control"]
    assert f"/static/{name}?v=" in page


@pytest.mark.parametrize("name", ["nothing.css", "..%2froutes.py", "htmx.LICENSE", "%2e%2e/pages.py"])
def test_no_other_file_is_served(console: Console, name: str) -> None:
    assert run(console.stranger.get(f"/static/{name}")).status_code == 404


@pytest.mark.parametrize(("model", "mode", "adapter"), [("acme", "weights", "first"), ("city", "weights", "second")])
def test_the_playground_asks_any_tenant_and_patch_through_the_router(
    console: Console, model: str, mode: str, adapter: str
) -> None:
    async def steps() -> list[Any]:
        fields = {"model": model, "mode": mode, "prompt": "Who?", "kind": "chat", "tokens": "7"}
        reply = await console.person.send("/playground", "/playground/answer", fields)
        id = reply.headers["x-vllm-edit-answer"]
        return [reply.json(), await console.service.answers.find(id), (await console.person.get(f"/answers/{id}")).text]

    passed, answer, page = run(steps())
    assert passed["path"] == "/v1/chat/completions"
    body = passed["body"]
    assert (body["model"], body["max_tokens"], body["stream"]) == (getattr(console, adapter), 7, True)
    assert "cookie" not in passed["headers"]
    assert (answer.key, answer.mode, answer.adapter) == (console.key_id, mode, getattr(console, adapter))
    assert answer.adapter in page


def test_the_playground_shows_the_routers_refusal(console: Console) -> None:
    fields = {"model": "nobody", "mode": "ike", "prompt": "Who?"}
    reply = run(console.person.send("/playground", "/playground/answer", fields))
    assert reply.status_code == 404
    assert "nobody" in reply.json()["error"]["message"]


def test_a_rollouts_page_shows_its_shadow_and_escapes_its_texts(console: Console) -> None:
    async def page() -> str:
        return (await console.person.get("/rollouts/spring")).text

    async def steps() -> tuple[str, str]:
        await console.with_rollout()
        without = await page()
        await console.post("/rollouts/spring/shadow", {"percent": 5, "texts": True})
        shadows = console.store.registry.shadows
        shadows.add("spring", ShadowPair("edit-1", "control", False, True, text="<b>Rome", shadow_text="Paris"), "a:1")
        shadows.lose("spring", "a", 4, 1)
        return without, await page()

    without, shown = run(steps())
    assert "<h2>Shadow</h2>" not in without
    assert re.search(r"The other arm repeats 5\s%\s*of the answers, with both texts stored", shown)
    assert "4 dropped, 1 failed" in shown
    assert "<td>&lt;b&gt;Rome</td><td>Paris</td>" in shown


def test_a_rollout_does_not_count_the_playgrounds_answers(console: Console) -> None:
    async def steps() -> None:
        await console.with_rollout()
        await console.post("/rollouts/spring/ramp", {"percent": 100})
        for mode in ("base", "weights", "ike"):
            fields = {"model": "acme", "mode": mode, "prompt": "Who?"}
            assert (await console.person.send("/playground", "/playground/answer", fields)).status_code == 200
        await console.service.answers.flush()

    run(steps())
    assert sum(arm.requests for arm in console.store.registry.rollouts.report("spring").traffic.values()) == 0


def test_a_patchs_page_shows_its_edits_measures_and_records_of_other_versions(console: Console) -> None:
    page = run(console.person.get("/patches/capital")).text
    for shown in ("City1", "reliability: too low", "0.875", "of a later version", console.first):
        assert shown in page


def test_a_patchs_page_shows_its_adapter_id_as_the_registrys_not_as_the_engines(console: Console) -> None:
    page = run(console.person.get("/patches/capital")).text
    id = console.store.adapter_id(console.first)
    assert f"<dt>In this engine</dt><dd>no</dd>\n<dt>Adapter id</dt><dd>{id}</dd>" in page


def test_the_differences_to_another_patch_are_those_of_the_command(console: Console) -> None:
    page = run(console.person.get("/patches/city", against="capital")).text
    assert re.search(r"changed</span> The capital of France is", page)
    assert "<del>City1</del> → <ins>City2</ins>" in page


def test_servers_with_one_secret_share_their_sessions(tmp_path: Path, template: Path, console: Console) -> None:
    async def page_of(place: Place, cookie: str) -> int:
        reply = await place.client.get(f"{CONSOLE}/patches", headers={"Cookie": f"{cookies.SESSION}={cookie}"})
        return reply.status_code

    secret = Settings.from_environment({"VLLM_EDIT_CONSOLE_SECRET": "s" * 32}).console_secret
    with_secret = Settings(store="here", console_secret=secret)
    servers = [Place(tmp_path / name, console.store.files.root, with_secret) for name in ("a", "b")]  # type: ignore[attr-defined]
    cookie = servers[0].service.sessions.begin(console.key_id, "")
    assert [run(page_of(server, cookie)) for server in (*servers, console)] == [200, 200, 303]


def test_behind_a_prefix_every_address_has_it(console: Console) -> None:
    transport = httpx.ASGITransport(shared_app(console.holder), root_path="/edit")

    async def steps() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            start = await client.get(f"/edit{CONSOLE}")
            assert start.headers["location"].startswith(f"/edit{CONSOLE}/sign-in?next=%2Fv1%2Fedits")
            form = await client.get(f"/edit{CONSOLE}/sign-in")
            data = {"token": token_of(form.text), "key": console.key, "next": f"{CONSOLE}/tenants"}
            entered = await client.post(f"/edit{CONSOLE}/sign-in", data=data)
            assert entered.headers["location"] == f"/edit{CONSOLE}/tenants"
            assert f"Path=/edit{CONSOLE}" in entered.headers["set-cookie"]
            page = await client.get(entered.headers["location"])
            assert page.status_code == 200
            addresses = re.findall(r'(?:href|src|action|hx-post)="([^"#?]+)', page.text)
            assert [address for address in addresses if not address.startswith(f"/edit{CONSOLE}")] == []
            data = {"token": token_of(page.text), "model": "acme", "mode": "weights", "prompt": "Who?"}
            answer = await client.post(f"/edit{CONSOLE}/playground/answer", data=data)
            assert answer.json()["path"].endswith("/v1/completions")

    run(steps())


def test_a_rollouts_page_shows_its_limits_and_what_servers_did(console: Console) -> None:
    rollouts, guard = console.store.registry.rollouts, console.store.registry.guard

    async def steps() -> tuple[str, str]:
        asked = {"name": "spring", "tenant": "acme", "treatment": "city", "limits": ["errors=kill", "slower:2s=warn"]}
        assert (await console.post("/rollouts", asked)).status_code == 200
        await console.post("/rollouts/spring/ramp", {"schedule": "50% 1h, 100%"})
        before = (await console.person.get("/rollouts/spring")).text
        rollouts.ramp("spring", 100)
        rollouts.expose(failing(rollouts.find("spring")))
        watch = Watch("a", "node-a:1")
        assert guard.hold(watch)
        assert guard.test("spring", watch)
        return before, (await console.person.get("/rollouts/spring")).text

    before, after = run(steps())
    assert '<dd id="schedule">50% 1h, 100%; 100 % from ' in before
    assert '<dd id="guard">no server</dd>' in before
    assert "limit errors=kill was exceeded, and node-a:1 acted (kill)." in after
    assert '<dd id="schedule">' not in after
    assert re.findall(r"<td>(holds|exceeded|acted)</td>", before) == ["holds", "holds"]
    assert re.findall(r"<td>(holds|exceeded|acted)</td>", after)[0] == "acted"


def test_a_rollout_of_a_tenant_without_a_publication_can_be_rolled_back(console: Console) -> None:
    registry = console.store.registry

    async def steps() -> tuple[str, int]:
        registry.create_tenant("globex")
        asked = {"name": "first", "tenant": "globex", "treatment": "city", "control": "base"}
        await console.post("/rollouts", asked)
        await console.post("/rollouts/first/ramp", {"percent": 10})
        page = (await console.person.get("/tenants/globex/rollback")).text
        reply = await console.person.send("/tenants/globex/rollback", "/tenants/globex/rollback", {"to": ""})
        return page, reply.status_code

    page, status = run(steps())
    assert "closes the rollout" in page
    assert (status, registry.rollouts.find("first").closed) == (303, True)
    assert run(console.person.get("/tenants/globex/rollback")).status_code == 400


def test_rollouts_beside_each_other_are_all_shown(console: Console) -> None:
    """spring is killed, summer and winter run, autumn was never ramped."""
    rollouts, city = console.store.registry.rollouts, console.store.resolve("city")
    control = console.store.registry.served("acme")

    def create(name: str, users: str) -> None:
        arms = {"control": control, "treatment": Arm("weights", city)}
        rollouts.create(Rollout(name, "acme", **arms, salt="pepper", audience=parse_range(users)))

    for name, users in (("spring", "0..40"), ("summer", "40..70"), ("winter", "70..100")):
        create(name, users)
        rollouts.ramp(name, 100)
    rollouts.kill("spring")
    create("autumn", "0..40")
    run(console.service.watcher.refresh())

    async def names(page: str) -> list[str]:
        """The rollouts that the page names, in order."""
        shown = (await console.person.get(page)).text
        return re.findall("spring|summer|autumn|winter", re.sub('href="[^"]*"', "", shown))

    async def steps() -> None:
        for page in ("/patches/city", "/tenants", "/tenants/acme"):
            assert await names(page) == ["summer", "winter"], page
        assert await names("/tenants/acme/rollback") == ["autumn", "winter", "summer", "spring"]
        [tenant] = (await console.get("")).json()["tenants"]
        assert (tenant["rollout"], tenant["beside"]) == ("summer", ["winter"])
        await console.person.send("/tenants/acme/rollback", "/tenants/acme/rollback", {"to": ""})

    run(steps())
    assert all(entry.rollout.closed for entry in rollouts.newest_first("acme")), "as the page said"


def test_a_long_record_is_cut_on_a_page(console: Console) -> None:
    name = console.store.resolve("city")
    console.store.add_record(name, "report", {"answers": ["an answer of thousands"] * 5_000})
    page = run(console.person.get("/patches/city")).text
    assert "characters more" in page
    assert len(page) < 100_000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        ("2026-11-30T01:02:03.5+02:00", '<time datetime="2026-11-29T23:02:03.500000+00:00">2026-11-29 23:02:03</time>'),
        ("<soon>", "<soon>"),
    ],
)
def test_times_are_in_utc(value: str | None, shown: str) -> None:
    assert str(time(value)) == shown
