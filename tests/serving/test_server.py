"""The real server: `vllm-edit serve` over a tiny model, one process for the module, vLLM with its engine inside."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.running_requests import running_requests
from tests.serving import places, traffic
from vllm_edit.store.store import Store

pytestmark = pytest.mark.slow

ADAPTERS = 16
START_SECONDS = 900  # a limit for a busy machine; an idle one needs half a minute


@dataclass
class Server:
    url: str
    store: Store
    model: Path
    names: list[str]

    def ask(self, model: str | None, prompt: str = traffic.PROMPTS[0]) -> httpx.Response:
        return httpx.post(
            f"{self.url}/v1/completions", json=traffic.body(model, "/v1/completions", prompt, False), timeout=120
        )

    def answered_by(self, model: str | None) -> str:
        return str(self.ask(model).json()["model"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    model = places.make_model(folder / "tiny")
    store = places.make_store(folder / "store", places.make_site(model))
    names = [places.add_patch(store, f"patch{index:02d}", index) for index in range(ADAPTERS)]
    for tenant, name in (("acme", names[0]), ("globex", names[1])):
        store.registry.create_tenant(tenant)
        store.registry.publish(tenant, name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Exactly as many slots as adapters: without the cure of the CPU defect, base would answer with the last one's.
    command = [sys.executable, "-m", "vllm_edit.cli", "serve", "--store", str(folder / "store"), "--port", str(port)]
    command += ["--max-loras", str(ADAPTERS), "--max-num-seqs", "64", "--uvicorn-log-level", "warning"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, folder / "log")
        yield Server(url, store, model, names)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < START_SECONDS and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


def test_two_thousand_concurrent_requests_over_sixteen_patches_and_base_have_no_wrong_answer(server: Server) -> None:
    expected = traffic.references(server.store, server.model, [None, *server.names])
    for route in traffic.ROUTES:  # a strong test needs answers that distinguish the patches
        answers = [
            tuple(tokens) for (_, of, prompt), tokens in expected.items() if (of, prompt) == (route, traffic.PROMPTS[0])
        ]
        assert len(set(answers)) == ADAPTERS + 1
    outcome = asyncio.run(traffic.flood(server.url, expected, requests=2000, at_once=2000))
    assert outcome.answered == 2000
    assert outcome.wrong == []

    # The same with all seventeen in one continuous batch for sure: long answers, begun together.
    with running_requests(server.url) as running:
        answered = asyncio.run(traffic.together(server.url, [None, *server.names], copies=3, length=200))
    for model, tokens in answered:
        assert tokens[: traffic.TOKENS] == expected[model, traffic.ROUTES[0], traffic.PROMPTS[0]]
    assert (max(running.requests), max(running.adapters)) == (3 * (ADAPTERS + 1), ADAPTERS)
    shown = httpx.get(f"{server.url}/metrics").text
    assert "vllm_edit_running_adapters 0.0" in shown
    assert "lora_requests_info" not in shown, "its series would grow without bound"


def test_patch_compiled_and_published_while_the_server_runs_is_served_and_rolled_back(server: Server) -> None:
    assert server.answered_by("acme") == server.names[0]
    new = places.add_patch(server.store, "hot", seed=99)
    assert server.answered_by("hot") == new
    server.store.registry.publish("acme", new)
    _until(lambda: server.answered_by("acme") == new)
    assert server.answered_by("globex") == server.names[1]
    server.store.registry.rollback("acme")
    _until(lambda: server.answered_by("acme") == server.names[0])


def _until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_server_names_the_patch_that_answered(server: Server) -> None:
    reply = server.ask("globex")
    found = httpx.get(f"{server.url}/v1/edits/answers/{reply.headers['X-VLLM-Edit-Id']}").json()
    assert (found["tenant"], found["adapter"], found["mode"]) == ("globex", server.names[1], "weights")
    listing = httpx.get(f"{server.url}/v1/edits").json()
    assert {patch["name"] for patch in listing["patches"]} >= set(server.names)
    models = [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]]
    assert models[0] == "tiny"
    assert {"acme", "globex", *server.names} <= set(models)


def test_ike_answers_with_a_prefix_and_without_an_adapter(server: Server) -> None:
    plain, reply = server.ask("acme:base"), None
    for route in traffic.ROUTES:
        asked = traffic.body("acme:ike", route, traffic.PROMPTS[0], False)
        del asked["return_token_ids"]
        reply = httpx.post(server.url + route, json=asked, timeout=120)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == "tiny"
    assert reply is not None
    assert reply.json()["usage"]["prompt_tokens"] > plain.json()["usage"]["prompt_tokens"] + 10


def test_responses_route_serves_a_patch_and_stores_nothing(server: Server) -> None:
    asked = {"model": "acme", "input": "Who wrote Hamlet?", "max_output_tokens": 4, "temperature": 0}
    reply = httpx.post(f"{server.url}/v1/responses", json=asked, timeout=120)
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == server.names[0]
    assert httpx.get(f"{server.url}/v1/responses/{reply.json()['id']}").status_code == 404


@pytest.mark.parametrize("model", ["nobody", "../../etc/passwd", "patch00@" + "0" * 32])
def test_unknown_names_are_404(server: Server, model: str) -> None:
    assert server.ask(model).status_code == 404


def test_routes_around_the_router_do_not_exist(server: Server) -> None:
    adapter = {"X-Amzn-SageMaker-Adapter-Identifier": server.names[0]}
    for path in ("/invocations", "/inference/v1/generate", "/v1/messages", "/tokenize", "/v1/load_lora_adapter"):
        assert httpx.post(server.url + path, json={"prompt": "x"}, headers=adapter).status_code == 404
