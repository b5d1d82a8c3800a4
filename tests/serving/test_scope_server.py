"""A patch of more edits than an adapter holds through the real server: vLLM with its engine, few slots, few places."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving import places, traffic
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.composition.scoped import Narrowing
from vllm_edit.demo.server import LocalServer
from vllm_edit.store.store import Store
from vllm_edit.text.prompts import prompt_ids

pytestmark = pytest.mark.slow

COUNT = 40
SLOTS, KEPT = 4, 6
ROUTE = "/v1/completions"
SUBJECTS = [(f"Land{number}",) for number in range(COUNT)]
SINGLES = [f"The capital of {name} is" for (name,) in SUBJECTS]
PAIRS = [f"Between {SUBJECTS[number][0]} and {SUBJECTS[number + 1][0]} lies" for number in range(0, COUNT, 5)]
OTHERS = ["Who wrote Hamlet?", "Land of hope", "Land400 is"]


@dataclass
class Server:
    url: str
    store: Store
    world: CompiledPatch
    expected: dict[str, list[int]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("scope")
    model = places.make_model(folder / "tiny")
    store = places.make_store(folder / "store", places.make_site(model))
    world = places.scoped_patch(store.site(), "world", SUBJECTS)
    store.registry.create_tenant("acme")
    store.registry.publish("acme", places.save_accepted(store, world))
    flags = ["--max-loras", str(SLOTS), "--max-cpu-loras", str(KEPT), "--max-num-seqs", "32"]
    with LocalServer(store.url, folder / "log", *flags, patience=900) as running:
        yield Server(running.url, store, world, references(model, world))


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


async def all_at_once(url: str, prompts: list[str]) -> list[list[int]]:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        asked = [
            traffic.ask(client, "acme", ROUTE, prompt, stream=number % 2 == 0) for number, prompt in enumerate(prompts)
        ]
        return await asyncio.gather(*asked)


def test_every_prompt_of_a_mixed_batch_gets_exactly_its_subjects(server: Server) -> None:
    assert len({tuple(server.expected[prompt]) for prompt in SINGLES}) > COUNT / 2, "a weak test"
    prompts = [*SINGLES, *PAIRS, *OTHERS] * 3
    answers = asyncio.run(all_at_once(server.url, prompts))
    wrong = [(prompt, got) for prompt, got in zip(prompts, answers, strict=True) if got != server.expected[prompt]]
    assert wrong == []


def test_afterwards_no_more_adapters_stay_than_there_is_room_for_and_the_old_ones_come_back(server: Server) -> None:
    deadline = time.monotonic() + 60
    while (engine := _engine(server))["adapters"] > KEPT or engine["leases"]:
        assert time.monotonic() < deadline, engine
        time.sleep(0.1)
    answers = asyncio.run(all_at_once(server.url, SINGLES[:3]))
    assert answers == [server.expected[prompt] for prompt in SINGLES[:3]]


def test_the_record_says_which_groups_answered(server: Server) -> None:
    def record_of(prompt: str) -> dict[str, Any]:
        reply = httpx.post(server.url + ROUTE, json=traffic.body("acme", ROUTE, prompt, False), timeout=120)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = httpx.get(f"{server.url}/v1/edits/answers/{reply.headers['x-vllm-edit-id']}").json()
        return found | {"answered": reply.json()["model"]}

    pair, nobody = record_of(PAIRS[1]), record_of("Who wrote Hamlet?")
    assert (pair["subjects"], pair["groups"]) == (["Land5", "Land6"], [5, 6])
    assert pair["answered"] == pair["adapter"] != pair["patch"] == server.world.name
    assert (nobody["adapter"], nobody["reason"], nobody["answered"]) == (None, "NO_SUBJECT", "tiny")


def test_token_ids_are_read_and_too_many_subjects_refused(server: Server) -> None:
    tokenizer = AutoTokenizer.from_pretrained(server.store.site().model)
    asked = traffic.body("acme", ROUTE, SINGLES[7], False) | {"prompt": prompt_ids(tokenizer, SINGLES[7])}
    reply = httpx.post(server.url + ROUTE, json=asked, timeout=120)
    assert reply.json()["choices"][0]["token_ids"] == server.expected[SINGLES[7]]
    crowd = traffic.body("acme", ROUTE, " ".join(name for (name,) in SUBJECTS), False)
    refused = httpx.post(server.url + ROUTE, json=crowd, timeout=120)
    assert refused.status_code == 400
    assert "Land39" in refused.json()["error"]["message"]


def _engine(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/v1/edits", timeout=120).json()["engine"]
    return found
