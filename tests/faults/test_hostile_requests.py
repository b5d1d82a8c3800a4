"""Hostile names, bodies and headers: no request makes the server fail, or reaches or reveals another tenant's data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from hypothesis import strategies as st

from tests.faults.asgi import Behind, Header, Sent, send
from tests.faults.damages import for_every
from tests.faults.hostile import FIELDS, INFERENCE, requests
from tests.faults.sizes import Sizes
from tests.serving import places
from tests.serving.without_engine import Place, run
from vllm_edit.edit import Edit
from vllm_edit.patch import Patch
from vllm_edit.registry.job_request import JobRequest
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.serving.admin.api import api
from vllm_edit.serving.console.routes import console
from vllm_edit.serving.fields import ALLOWED
from vllm_edit.serving.router import Router
from vllm_edit.serving.server_settings import Settings

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
PATCHES = {"acme": ("meadow",), "globex": ("harbour",), "initech": ("orchard",), "hooli": ("glacier", "lagoon")}
"""Tenant → the patches that may answer it. initech's patch has scope subject, hooli's are the arms of a rollout."""
TARGETS = {"meadow": "City0", "harbour": "City1", "glacier": "City2", "lagoon": "City3"}
"""The answer of a patch's edit; it is also in its prefix for mode ike."""
SUBJECTS = (("Zanzibar", "桑吉巴"), ("Quito",))
HIDDEN = (b"authorization", b"x-request-id", b"x-amzn-sagemaker-", b"x-vllm-edit-")
"""Headers of a client that must not reach vLLM."""


class Server(Place):
    """Four tenants, each with an author's key, a patch and a job of its own, and an administrator."""

    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder, template, Settings(store="here", log_prompts=True, allowed_fields=FIELDS))
        registry = self.store.registry
        self.keys = {who: registry.create_api_key(who, author=True) for who in PATCHES}
        self.keys["admin"] = registry.create_api_key(None)
        self.jobs = {who: registry.jobs.submit(_request(patches[0]), tenant=who).id for who, patches in PATCHES.items()}
        for id in self.jobs.values():  # the events of an open job last
            registry.jobs.cancel(id)
        self.full = {name.partition("@")[0]: name for name in self.store.names()}
        self.behind, self.app = Behind(), FastAPI()
        self.app.include_router(api(self.holder))
        self.app.include_router(console(self.holder))
        self.app.router.default = self.behind
        self.app.add_middleware(Router, holder=self.holder)
        run(self.service.watcher.refresh())


def _request(patch: str) -> JobRequest:
    edit = Edit(prompt="The capital of Quito is", subject="Quito", target_new="Rome")
    return JobRequest(Patch(name=f"{patch}-next", edits=(edit,)))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    names = {patch: places.add_patch(store, patch, seed) for seed, patch in enumerate(TARGETS)}
    names["orchard"] = places.save_accepted(store, places.scoped_patch(store.site(), "orchard", SUBJECTS))
    for tenant, patches in PATCHES.items():
        store.registry.create_tenant(tenant)
        store.registry.publish(tenant, names[patches[0]])
    arms = Arm("weights", names["glacier"]), Arm("ike", names["lagoon"])
    store.registry.rollouts.create(Rollout("spring", "hooli", *arms, salt="pepper"))
    store.registry.rollouts.ramp("spring", 60)
    store.registry.close()
    return folder / "store"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Server:
    return Server(tmp_path_factory.mktemp("server"), template)


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.mark.parametrize("who", PATCHES)
def test_every_tenant_is_answered_by_its_own(server: Server, loop: asyncio.Runner, who: str) -> None:
    body = json.dumps({"prompt": "The capital of Quito is"}).encode()
    reply = loop.run(send(server.app, Sent("POST", INFERENCE[0], authorization(server, who), body)))
    answer = server.service.answers.get(reply.headers["x-vllm-edit-id"])
    assert answer is not None
    assert (answer.tenant, (answer.patch or "").partition("@")[0] in PATCHES[who]) == (who, True)


@pytest.mark.parametrize("who", [*PATCHES, None, "unknown", "admin"])
def test_no_request_makes_the_server_fail_or_reveals_another_tenants_data(
    server: Server, loop: asyncio.Runner, who: str | None, sizes: Sizes, record_property: Record
) -> None:
    names, answered = known_names(server), 0

    def check(request: Sent) -> None:
        nonlocal answered
        server.behind.reached.clear()
        keyed = replace(request, headers=(*authorization(server, who), *request.headers))
        reply = loop.run(send(server.app, keyed))
        assert reply.status < 500, reply.content
        page = reply.headers.get("content-type", "").startswith("text/html")
        assert not page or keyed.path.startswith("/v1/edits/console")
        if (
            reply.status >= 400 and not page
        ):  # with `detail` it is FastAPI's own, which vLLM's application puts into OpenAI's form
            assert json.loads(reply.content).keys() in ({"error"}, {"detail"})
        for scope, body in server.behind.reached:
            if scope["path"] in INFERENCE:
                assert not [name for name, _ in scope["headers"] if name.startswith(HIDDEN)]
                assert json.loads(body)["model"].partition("@")[0] in ("atlas", *PATCHES.get(who or "", ()))
                assert json.loads(body).keys() <= ALLOWED[scope["path"]] | FIELDS
            elif who != "admin":
                assert scope["path"] in ("/health", "/ping", "/version")
            else:
                assert scope["path"].startswith(("/health", "/ping", "/version", "/metrics", "/v1/edits"))
        answered += bool(server.behind.reached)
        if who != "admin":
            assert not [
                secret for secret in secrets(server, who) if secret in reply.text and secret not in request.said
            ]

    record_property("requests", for_every(check, requests(names), sizes.requests))
    record_property("of them passed on", answered)


@pytest.mark.parametrize("who", PATCHES)
def test_an_author_finds_its_own_job_only(server: Server, loop: asyncio.Runner, who: str) -> None:
    own = authorization(server, who)
    for owner, id in server.jobs.items():
        for path in (f"/v1/edits/jobs/{id}", f"/v1/edits/jobs/{id}/events"):
            assert loop.run(send(server.app, Sent("GET", path, own, b""))).status == (200 if owner == who else 404)
    listed = loop.run(send(server.app, Sent("GET", "/v1/edits/jobs", own, b"")))
    assert [job["id"] for job in json.loads(listed.content)] == [server.jobs[who]]


def authorization(server: Server, who: str | None) -> tuple[Header, ...]:
    if who is None:
        return ()
    presented = server.keys[who].presented if who in server.keys else "ve_0123456789ab_" + "x" * 43
    return ((b"authorization", f"Bearer {presented}".encode()),)


def known_names(server: Server) -> st.SearchStrategy[str]:
    """Model names that a client can ask for, with modes and beginnings of digests; and lookalikes."""
    whole = [*PATCHES, *server.full, *server.full.values(), "atlas", "/models/atlas", "nobody", "spring"]
    cut = [name[: name.index("@") + 5] for name in server.full.values()]
    ids = [*(key.api_key.id for key in server.keys.values()), *server.jobs.values()]
    ids += [f"{id}{verb}" for id in server.jobs.values() for verb in ("/cancel", "/events")]
    ending = st.sampled_from(["", "", "", ":ike", ":base", ":weights", ":", "@", "\n", "\x00", "/..", "@" + "0" * 32])
    return st.tuples(st.sampled_from([*whole, *cut, *ids]), ending).map("".join)


def secrets(server: Server, who: str | None) -> list[str]:
    """Data that only its tenant may read: names, digests, keys, and the words of its edits."""
    others = {tenant: patches for tenant, patches in PATCHES.items() if tenant != who}
    patches = [patch for patches in others.values() for patch in patches]
    found = [*others, *patches, *(server.full[patch].partition("@")[2][:12] for patch in patches)]
    found += [id for owner, id in server.jobs.items() if owner != who]
    found += [key.api_key.id for owner, key in server.keys.items() if owner != who]
    found += [key.presented for key in server.keys.values()]
    found += [TARGETS[patch] for patch in patches if patch in TARGETS]
    found += [] if who == "initech" else [name for subject in SUBJECTS for name in subject]
    return [*found, "spring", str(server.store.url)]
