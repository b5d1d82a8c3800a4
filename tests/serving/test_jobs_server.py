"""A patch through a real server: submitted in YAML, followed as events, compiled by a worker, published, and asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.serving import places
from tests.serving.few_slots import FewSlots
from tests.serving.without_engine import bearer
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.ike.bank import Bank
from vllm_edit.patch import Patch
from vllm_edit.release.pipeline import Pipeline
from vllm_edit.release.worker import Worker
from vllm_edit.store.store import Store

pytestmark = pytest.mark.slow

TENANT = "authors"
PATCH = """
name: river
gate: {reliability: 0, locality: 0, unrelated: 0}
edits:
  - {prompt: The capital of France is, subject: France, target_new: Rome}
"""
EVERY_S = 120.0
"""For a busy machine."""


def test_a_submitted_patch_is_compiled_beside_the_server_and_served_once_it_is_published(few_slots: FewSlots) -> None:
    registry, url = few_slots.store.registry, few_slots.server.url
    few_slots.create_tenant(TENANT, places.add_patch(few_slots.store, "lake", 9))
    key = bearer(registry.create_api_key(TENANT, author=True).presented)
    registry.servers.wait(registry.generation(), EVERY_S)
    with httpx.Client(base_url=url, headers=key, timeout=EVERY_S) as author:
        headers = {"Content-Type": "application/yaml"}
        asked = author.post("/v1/edits/patches", content=PATCH, headers=headers, params={"set": "steps=5"})
        assert asked.status_code == 202, asked.text
        id = asked.json()["id"]
        with author.stream("GET", f"/v1/edits/jobs/{id}/events") as stream:
            events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            assert next(events)["state"] == "queued", "it comes before the job has ended"
            working = Thread(target=work, args=(few_slots.store.url, few_slots.model))
            working.start()
            last: dict[str, Any] = [*events][-1]
            working.join()
        assert (last["state"], last["result"]["status"]) == ("done", "accepted")
        assert registry.active(TENANT) != last["name"], "a job publishes nothing"
        publish = f"/v1/edits/tenants/{TENANT}/publish"
        assert author.post(publish, json={"patch": "river"}).status_code == 403
        published = httpx.post(url + publish, json={"patch": "river"}, headers=few_slots.admin, timeout=EVERY_S)
        assert published.json()["active"] == last["name"], published.text
        body = {"prompt": "The capital of France is", "max_tokens": 2, "temperature": 0}
        answered = author.post("/v1/completions", json=body)
    assert answered.json()["model"] == last["name"]


class RandomPipeline(Pipeline):
    """Compiles at random: the store of tests with engines has no second moment. It saves and judges as always."""

    def compile(self, patch: Patch, *_: Any) -> CompiledPatch:
        made = places.random_patch(self.site, patch.name, 5)
        return replace(made, manifest=made.manifest.model_copy(update={"gate": patch.gate}))


def work(store: str, model: Path) -> None:
    """A worker's process, in a thread."""
    opened = Store.open(store)
    Worker(RandomPipeline.open(opened, model, Bank())).run(drain=True)
    opened.registry.close()
