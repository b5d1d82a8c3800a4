"""Two real servers over one registry in PostgreSQL and one store: both follow a change, also after failures. The tests
of this file depend on their order and continue from each other's state, because starting two engines is slow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import postgres
from tests.serving import places
from tests.serving.without_engine import bearer
from vllm_edit.demo.server import LocalServer
from vllm_edit.registry.registry import Registry
from vllm_edit.rollout.arm import Arm
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

pytestmark = pytest.mark.slow

FLAGS = ("--max-loras", "4", "--max-num-seqs", "16", "--uvicorn-log-level", "warning")
PATIENCE_S = 900  # for a busy machine


@dataclass
class Replicas:
    """Servers by name, each with the stored state of its own node."""

    store: Store
    cluster: postgres.Cluster
    folder: Path
    names: list[str]
    keys: dict[str, dict[str, str]]
    running: dict[str, LocalServer] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def registry(self) -> Registry:
        return self.store.registry

    def start(self, name: str) -> None:
        environment = {"VLLM_EDIT_STATE": str(self.folder / name)}
        log = self.folder / f"{name}.log"
        server = LocalServer(self.store.url, log, *FLAGS, patience=PATIENCE_S, environment=environment)
        self.running[name] = self.stack.enter_context(server)

    def ask(self, name: str, user: str = "ann", tenant: str = "acme", **fields: Any) -> httpx.Response:
        """A request of the tenant's to one of the servers."""
        body = {"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0, **fields}
        headers = {**self.keys[tenant], "X-User-Id": user}
        return httpx.post(f"{self.running[name].url}/v1/completions", json=body, headers=headers, timeout=60)

    def served(self, **asked: str) -> set[str]:
        """The servers' answers to the tenant."""
        replies = [self.ask(name, **asked) for name in self.running]
        assert {reply.status_code for reply in replies} == {200}, [reply.text for reply in replies]
        return {reply.headers["x-vllm-edit-adapter"] for reply in replies}

    def admin(self, name: str, path: str, body: Any = None) -> httpx.Response:
        url = f"{self.running[name].url}/v1/edits{path}"
        if body is None:
            return httpx.get(url, headers=self.keys["admin"], timeout=60)
        return httpx.post(url, json=body, headers=self.keys["admin"], timeout=60)

    def live(self) -> int:
        return len(self.registry.servers.live())


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, cluster: postgres.Cluster) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLLM_EDIT_REGISTRY", cluster.new_database())
        store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "tiny")))
        names = [places.add_patch(store, patch, number) for number, patch in enumerate(("capital", "city", "river"))]
        keys = {"admin": bearer(store.registry.create_api_key(None).presented)}
        for tenant, name in (("acme", names[0]), ("globex", names[1])):
            store.registry.create_tenant(tenant)
            store.registry.publish(tenant, name)
            keys[tenant] = bearer(store.registry.create_api_key(tenant).presented)
        made = Replicas(store, cluster, folder, names, keys)
        with made.stack:
            made.start("east")
            made.start("west")
            yield made


def until(holds: Any, what: str, within_s: float = 60.0) -> None:
    """Wait until the servers reach a state without a request."""
    ends = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


def test_a_publication_is_served_by_both_servers_after_both_have_reported_it(replicas: Replicas) -> None:
    assert replicas.live() == 2
    assert replicas.served() == {replicas.names[0]}
    for name in (replicas.names[1], replicas.names[2], replicas.names[0]):
        replicas.registry.publish("acme", name)
        followed = replicas.registry.servers.wait(replicas.registry.generation(), 30)
        assert (len(followed.acknowledged), followed.missing) == (2, ())
        assert replicas.served() == {name}
    published = replicas.admin("east", "/tenants/acme/publish", {"patch": "city"}).json()
    assert len(published["acknowledged"]["servers"]) == 2
    assert replicas.served() == {replicas.names[1]}, "west follows what was sent to east"
    assert replicas.admin("west", "/tenants/acme/rollback", {}).json()["active"] == replicas.names[0]
    assert replicas.served() == {replicas.names[0]}


def test_a_user_is_on_one_arm_wherever_it_is_answered_and_its_outcome_counts_from_anywhere(replicas: Replicas) -> None:
    old, new = (Arm("weights", name) for name in (replicas.names[0], replicas.names[2]))
    body = {"name": "spring", "tenant": "acme", "treatment": "river", "metrics": ["solved"], "salt": "pepper"}
    assert replicas.admin("east", "/rollouts", body).json()["control"] == str(old)
    assert replicas.admin("west", "/rollouts/spring/ramp", {"percent": 100}).json()["acknowledged"]["missing"] == []
    seen = set()
    for user in map(str, range(8)):
        answers = replicas.served(user=user)
        assert len(answers) == 1
        seen |= answers
        id = replicas.ask("east", user).headers["x-vllm-edit-id"]
        outcome = {"id": id, "metric": "solved", "value": 1}
        url = f"{replicas.running['west'].url}/v1/edits/outcomes"
        assert httpx.post(url, json=outcome, headers=replicas.keys["acme"], timeout=60).json() == {"recorded": True}
        assert httpx.post(url, json=outcome, headers=replicas.keys["globex"], timeout=60).status_code == 404
    assert seen == {old.name, new.name}
    report = replicas.registry.rollouts.report("spring")
    assert sum(traffic.requests for traffic in report.traffic.values()) >= 8
    assert replicas.admin("west", f"/answers/{id}").json()["adapter"] in seen
    assert replicas.admin("east", "/rollouts/spring/kill", {}).json()["acknowledged"]["missing"] == []
    assert {answer for user in map(str, range(8)) for answer in replicas.served(user=user)} == {old.name}


def test_with_the_registry_down_serving_continues_and_killed_rollouts_stay_killed(replicas: Replicas) -> None:
    revoked = replicas.registry.create_api_key("acme")
    replicas.registry.revoke_api_key(revoked.api_key.id)
    assert replicas.registry.servers.wait(replicas.registry.generation(), 30).missing == ()
    replicas.cluster.stop()
    try:
        assert {answer for user in map(str, range(8)) for answer in replicas.served(user=user)} == {replicas.names[0]}
        assert replicas.admin("east", "/tenants/acme/publish", {"patch": "city"}).status_code == 503
        assert replicas.ask("east", model="nobody").status_code == 404
        replicas.running["west"].__exit__(None, None, None)
        replicas.start("west")
        assert {answer for user in map(str, range(8)) for answer in replicas.served(user=user)} == {replicas.names[0]}
        assert replicas.served(tenant="globex") == {replicas.names[1]}
        replicas.keys["revoked"] = bearer(revoked.presented)
        assert replicas.ask("west", tenant="revoked").status_code == 401
    finally:
        replicas.cluster.start()
    until(lambda: replicas.live() == 2, "both are heard of again")
    replicas.registry.publish("acme", replicas.names[2])
    assert replicas.registry.servers.wait(replicas.registry.generation(), 60).missing == ()
    assert replicas.served() == {replicas.names[2]}


def test_a_removed_patch_leaves_both_engines_before_its_files_go(replicas: Replicas) -> None:
    old = places.add_patch(replicas.store, "lake", 7)
    places.add_patch(replicas.store, "lake", 8)
    assert replicas.registry.servers.wait(replicas.registry.generation(), 30).missing == ()
    replicas.registry.publish("globex", old)
    assert replicas.registry.servers.wait(replicas.registry.generation(), 30).missing == ()
    assert replicas.served(tenant="globex") == {old}
    replicas.registry.rollback("globex")
    collected = replicas.admin("east", "/gc", {"remove": True})
    assert collected.json() == {"would_remove": [], "removed": [old], "retired": [], "missing": []}
    for name in replicas.running:
        listing = replicas.admin(name, "").json()
        assert old not in [patch["name"] for patch in listing["patches"]]
        assert replicas.ask(name, tenant="globex", model=old).status_code == 404
    assert problems_of(replicas.store) == []
    assert replicas.registry.verify_audit().problems == ()


def test_a_server_that_died_is_named_until_it_is_no_longer_expected(replicas: Replicas) -> None:
    west = replicas.running.pop("west")
    west.kill()
    replicas.registry.publish("acme", replicas.names[1])
    followed = replicas.registry.servers.wait(replicas.registry.generation(), 1.0)
    assert (len(followed.acknowledged), len(followed.missing)) == (1, 1)
    until(lambda: replicas.live() == 1, "a silent server is not live any more")
    replicas.registry.publish("acme", replicas.names[0])
    assert replicas.registry.servers.wait(replicas.registry.generation(), 30).missing == ()
    assert replicas.served() == {replicas.names[0]}
    replicas.running["east"].__exit__(None, None, None)
    assert replicas.live() == 0, "one that is stopped says so, and nobody waits for it"
    replicas.running.clear()
