"""Hostile forms, cookies and addresses: the console never fails, and shows nothing to a person without a session."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.faults.asgi import Sent, send
from tests.faults.hostile import METHODS, texts
from tests.serving import places
from tests.serving.browsing import CONSOLE, token_of
from tests.serving.test_admin import Administered
from tests.serving.without_engine import make_app
from vllm_edit.serving.console import cookies, sign_in
from vllm_edit.serving.console.form import TOKEN
from vllm_edit.serving.console.routes import console
from vllm_edit.serving.service import Holder
from vllm_edit.store.maintenance import problems_of

pytestmark = pytest.mark.slow

SECRETS = ("meadow", "City1", "acme", "globex")
NAMES = st.sampled_from(["acme", "globex", "meadow", "meadow@0000", "spring", "nobody", "..", "", "atlas", "base"])
OPEN = (f"{CONSOLE}/sign-in", f"{CONSOLE}/static/")
FORMS = ("/tenants", "/publish", "/rollback", "/ramp", "/{verb}", "/sign-in", "/sign-out", "/answer")
"""The ends of the addresses to which forms are sent."""


class Open(Administered):
    """app: with the console. cookie: of a signed-in person, with the token of their forms."""

    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder, template)
        self.app = make_app(self.holder)
        session = self.service.sessions.begin(self.key_id, "ann")
        found = self.service.sessions.read(session)
        assert found is not None
        self.cookie, self.token = f"{cookies.SESSION}={session}", self.service.sessions.token(found.nonce)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    folder = tmp_path_factory.mktemp("hostile-console")
    store = places.make_store(folder / "template", places.make_site(places.make_model(folder / "model")))
    name = places.add_patch(store, "meadow", 1)
    for tenant in ("acme", "globex"):
        store.registry.create_tenant(tenant)
    store.registry.publish("acme", name)
    store.registry.close()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sign_in, "FAILED_S", 0.0)
        yield Open(folder, folder / "template")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def paths() -> list[str]:
    """Every path of the console, with its parameters."""
    return sorted({route.path for route in console(Holder()).routes})  # type: ignore[attr-defined]


def filled(routes: list[str], names: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The routes' paths, with names for their parameters."""
    return st.builds(lambda path, name: re.sub(r"\{[^}]*\}", lambda _: name, path), st.sampled_from(routes), names)


def addresses() -> st.SearchStrategy[str]:
    """Addresses of the console: its own with any names in them, and others."""
    ending = st.sampled_from(["", "", "/", "/..", "//", "%00", "/static/../routes.py"])
    return (
        st.tuples(filled(paths(), NAMES | texts(12)), ending)
        .map("".join)
        .filter(lambda path: path.isascii() or _is_text(path))
    )


def _is_text(path: str) -> bool:
    """Servers decode paths, so half of a surrogate pair never comes."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def forms(token: str) -> st.SearchStrategy[bytes]:
    fields = ("patch", "name", "why", "to", "override", "valid_until", "percent", "key", "next", "model", "prompt")
    value = NAMES | texts() | st.sampled_from(["50", "NaN", "1e999", "2099-01-01T00:00", "ike", "weights"])
    drawn = st.dictionaries(st.sampled_from((*fields, "mode", "tokens", "kind", "extra")), value, max_size=5)
    known = drawn.map(lambda form: urlencode({**form, TOKEN: token}, errors="replace").encode())
    unknown = drawn.map(lambda form: urlencode({**form, TOKEN: "x" * 64}, errors="replace").encode())
    return known | known | unknown | st.binary(max_size=100)


def requests(token: str) -> st.SearchStrategy[Sent]:
    """Forms that a page could send, with any fields; and any method, address and body."""
    kinds = [
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"multipart/form-data",
        b"text/x",
    ]
    hosts = st.sampled_from([b"server", b"[", b"a:b:c", b"", b"\xff", b"evil.example/v1"])
    queries = st.dictionaries(
        st.sampled_from(["search", "page", "against", "live", "limit", "verify", "id", "to"]), NAMES
    )
    posted = filled([route for route in paths() if route.endswith(FORMS)], NAMES)

    def sent(method: str, path: str, kind: bytes, host: bytes, body: bytes, query: dict[str, str]) -> Sent:
        return Sent(method, path, ((b"content-type", kind), (b"host", host)), body, urlencode(query).encode())

    likely = st.builds(sent, st.just("POST"), posted, st.just(kinds[0]), hosts, forms(token), queries)
    read = st.builds(sent, st.just("GET"), filled(paths(), NAMES), st.just(b""), hosts, st.just(b""), queries)
    methods = st.sampled_from(["GET", "GET", "POST", *METHODS])
    other = st.builds(sent, methods, addresses(), st.sampled_from(kinds), hosts, forms(token), queries)
    return likely | read | other


def for_each(strategy: st.SearchStrategy[Any], examples: int, check: Any) -> None:
    how = settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    how(given(strategy)(lambda drawn: check(drawn)))()


def test_no_form_and_no_address_makes_the_server_fail(place: Open, loop: asyncio.Runner) -> None:
    seen: Counter[int] = Counter()

    def check(request: Sent) -> None:
        keyed = replace(request, headers=(*request.headers, (b"cookie", place.cookie.encode())))
        reply = loop.run(send(place.app, keyed))
        assert reply.status < 500, (request, reply.content)
        if reply.headers.get("content-type", "").startswith("text/html"):
            assert "default-src 'none'" in reply.headers["content-security-policy"]
        seen[reply.status] += 1

    for_each(requests(place.token), 200, check)
    assert {200, 303, 400, 403, 404} <= set(seen), "some do something, some are refused"


def test_without_a_session_only_the_form_to_sign_in_answers(place: Open, loop: asyncio.Runner) -> None:
    forged = (
        st.sampled_from([b"", place.cookie[:-3].encode(), b"vllm_edit_session=x.y.z", b"\xff=;;\x00"]) | st.binary()
    )
    generation = place.store.registry.generation()

    def check(drawn: tuple[Sent, bytes]) -> None:
        request, cookie = drawn
        reply = loop.run(send(place.app, replace(request, headers=(*request.headers, (b"cookie", cookie)))))
        assert reply.status in (200, 303, 400, 401, 403, 404, 405), (request, reply.content)
        assert reply.status != 200 or request.path.startswith(OPEN)
        if reply.status == 303:
            assert reply.headers["location"].startswith(f"{CONSOLE}/sign-in?next=")
        assert not [word for word in SECRETS if word in reply.text and word not in request.said]

    for_each(st.tuples(requests(place.token), forged), 150, check)
    assert place.store.registry.generation() == generation


def test_every_form_that_its_description_allows_is_answered(place: Open, loop: asyncio.Runner) -> None:
    """schemathesis draws the fields of every form from the console's own description; the token is the session's."""
    app: FastAPI = place.app
    description = f"{CONSOLE}/openapi.json"
    refused = loop.run(send(app, Sent("GET", description, (), b"")))
    assert refused.status == 303, "the description is for a person who has signed in"
    described = loop.run(send(app, Sent("GET", description, ((b"cookie", place.cookie.encode()),), b"")))
    schema = schemathesis.openapi.from_dict(json.loads(described.content))
    schema.app = app
    seen: Counter[int] = Counter()

    def check(case: Any) -> None:
        if isinstance(case.body, dict) and TOKEN in case.body:
            case.body[TOKEN] = place.token
        reply = case.call(headers={"Cookie": place.cookie}, allow_redirects=False)
        assert reply.status_code < 500, (case.as_curl_command(), reply.text)
        seen[reply.status_code] += 1

    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:
        both = st.one_of(operation.as_strategy(), operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        for_each(both, 5, check)
    assert len(operations) >= 20
    assert {200, 303, 400, 404} <= set(seen)


def test_it_is_whole_and_consistent_afterwards(place: Open, loop: asyncio.Runner) -> None:
    assert problems_of(place.store) == []
    assert place.store.registry.verify_audit().problems == ()
    page = loop.run(send(place.app, Sent("GET", f"{CONSOLE}/tenants", ((b"cookie", place.cookie.encode()),), b"")))
    assert (page.status, token_of(page.content.decode())) == (200, place.token)
    reply = loop.run(send(place.app, Sent("GET", "/v1/edits/openapi.json", tuple(_headers(place)), b"")))
    assert not [path for path in json.loads(reply.content)["paths"] if "console" in path]


def _headers(place: Open) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in place.admin.items()]
