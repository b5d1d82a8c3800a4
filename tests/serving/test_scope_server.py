"""A patch of more edits than an adapter holds through the real server: vLLM with its engine, few slots, few places."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving import places, traffic
from tests.serving.few_slots import PLACES, FewSlots
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.scoped import Narrowing
from vllm_edit.store.store import Store
from vllm_edit.text.prompts import prompt_ids

pytestmark = pytest.mark.slow

COUNT = 40
TENANT = "lands"
ROUTE = "/v1/completions"
SUBJECTS = [(f"Land{number}",) for number in range(COUNT)]
SINGLES = [f"The capital of {name} is" for (name,) in SUBJECTS]
PAIRS = [f"Between {SUBJECTS[number][0]} and {SUBJECTS[number + 1][0]} lies" for number in range(0, COUNT, 5)]
OTHERS = ["Who wrote Hamlet?", "Land of hope", "Land400 is"]


@dataclass
class Server:
    """key, admin: the headers of the tenant and of an administrator."""

    url: str
    store: Store
    key: dict[str, str]
    admin: dict[str, str]
    world: CompiledPatch
    expected: dict[str, list[int]]

    def ask(self, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.url + ROUTE, json=body, headers=self.key, timeout=120)


@pytest.fixture(scope="module")
def server(few_slots: FewSlots) -> Server:
    store = few_slots.store
    world = places.scoped_patch(store.site(), "world", SUBJECTS)
    key = few_slots.create_tenant(TENANT, places.save_accepted(store, world))
    return Server(few_slots.server.url, store, key, few_slots.admin, world, references(few_slots.model, world))


def references(folder: Path, world: CompiledPatch) -> dict[str, list[int]]:
    """Greedy tokens of base + ΔW of what each prompt mentions, by Hugging Face, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    narrowing = Narrowing(world)
    found = {}
    for prompt in [*SINGLES, *PAIRS, *OTHERS]:
        ids = prompt_ids(tokenizer, prompt)
        served = narrowing.of(prompt)
        if served is None:
            found[prompt] = traffic.greedy(model, ids)
        else:
            with served.delta.apply(model):
                found[prompt] = traffic.greedy(model, ids)
    return found


async def all_at_once(server: Server, prompts: list[str]) -> list[list[int]]:
    async with httpx.AsyncClient(base_url=server.url, headers=server.key, timeout=600) as client:
        asked = [
            traffic.ask(client, TENANT, ROUTE, prompt, stream=number % 2 == 0) for number, prompt in enumerate(prompts)
        ]
        return await asyncio.gather(*asked)


def test_every_prompt_of_a_mixed_batch_gets_exactly_its_subjects(server: Server) -> None:
    assert len({tuple(server.expected[prompt]) for prompt in SINGLES}) > COUNT / 2, "a weak test"
    prompts = [*SINGLES, *PAIRS, *OTHERS] * 3
    answers = asyncio.run(all_at_once(server, prompts))
    wrong = [(prompt, got) for prompt, got in zip(prompts, answers, strict=True) if got != server.expected[prompt]]
    assert wrong == []


def test_afterwards_no_more_adapters_stay_than_there_is_room_for_and_the_old_ones_come_back(server: Server) -> None:
    deadline = time.monotonic() + 60
    while (engine := _engine(server))["adapters"] > PLACES or engine["leases"]:
        assert time.monotonic() < deadline, engine
        time.sleep(0.1)
    answers = asyncio.run(all_at_once(server, SINGLES[:3]))
    assert answers == [server.expected[prompt] for prompt in SINGLES[:3]]


def test_the_record_says_which_groups_answered(server: Server) -> None:
    def record_of(prompt: str) -> dict[str, Any]:
        reply = server.ask(traffic.body(TENANT, ROUTE, prompt, False))
        assert reply.status_code == 200, reply.text
        url = f"{server.url}/v1/edits/answers/{reply.headers['x-vllm-edit-id']}"
        found: dict[str, Any] = httpx.get(url, headers=server.admin, timeout=120).json()
        return found | {"answered": reply.json()["model"]}

    pair, nobody = record_of(PAIRS[1]), record_of("Who wrote Hamlet?")
    assert (pair["subjects"], pair["groups"]) == (["Land5", "Land6"], [5, 6])
    assert pair["answered"] == pair["adapter"] != pair["patch"] == server.world.name
    assert (nobody["adapter"], nobody["reason"], nobody["answered"]) == (None, "NO_SUBJECT", "tiny")


def test_token_ids_are_read_and_too_many_subjects_refused(server: Server) -> None:
    tokenizer = AutoTokenizer.from_pretrained(server.store.site().model)
    reply = server.ask(traffic.body(TENANT, ROUTE, SINGLES[7], False) | {"prompt": prompt_ids(tokenizer, SINGLES[7])})
    assert reply.json()["choices"][0]["token_ids"] == server.expected[SINGLES[7]]
    refused = server.ask(traffic.body(TENANT, ROUTE, " ".join(name for (name,) in SUBJECTS), False))
    assert refused.status_code == 400
    assert "Land39" in refused.json()["error"]["message"]


def _engine(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/v1/edits", headers=server.admin, timeout=120).json()["engine"]
    return found
