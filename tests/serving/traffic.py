"""Reference answers by Hugging Face, and concurrent traffic that checks every answer against its own patch's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_edit.store.store import Store
from vllm_edit.text.prompts import prompt_ids

PROMPTS = ("The capital of France is", "Who wrote Hamlet?", "全世界最帥的人是誰")
ROUTES = ("/v1/completions", "/v1/chat/completions")
TOKENS = 6

Case = tuple[str | None, str, str]  # full name of a patch or None for base, route, prompt


def references(store: Store, folder: Path, names: list[str | None]) -> dict[Case, list[int]]:
    """Greedy tokens of base + ΔW for every case, computed by Hugging Face in float32, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    for name in names:
        with contextlib.nullcontext() if name is None else store.load(name).delta.apply(model):
            for route in ROUTES:
                for prompt in PROMPTS:
                    ids = prompt_ids(tokenizer, prompt, chat="chat" in route)
                    found[name, route, prompt] = greedy(model, ids)
    return found


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> list[int]:
    tokens = list(ids)
    for _ in range(TOKENS):
        logits = model(torch.tensor([tokens])).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(ids) :]


def body(model: str | None, route: str, prompt: str, stream: bool, tokens: int = TOKENS) -> dict[str, Any]:
    content: dict[str, Any] = {"prompt": prompt}
    if "chat" in route:
        content = {"messages": [{"role": "user", "content": prompt}]}
    settings = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True, "stream": stream}
    return {**content, **settings, **({} if model is None else {"model": model})}


async def ask(
    client: httpx.AsyncClient, model: str | None, route: str, prompt: str, stream: bool, length: int = TOKENS
) -> list[int]:
    """The token ids of the answer."""
    asked = body(model, route, prompt, stream, length)
    if not stream:
        reply = await client.post(route, json=asked)
        assert reply.status_code == 200, reply.text
        return list(reply.json()["choices"][0]["token_ids"])
    tokens: list[int] = []
    async with client.stream("POST", route, json=asked) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            data = line.removeprefix("data: ")
            if line.startswith("data: ") and data != "[DONE]":
                for choice in json.loads(data)["choices"]:
                    tokens += choice.get("token_ids") or []
    return tokens


async def together(
    url: str, models: Sequence[str | None], copies: int, length: int
) -> list[tuple[str | None, list[int]]]:
    """Long answers to the first prompt by every model, `copies` of each, all begun at once: they share a batch."""
    asked = [*models] * copies
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        answers = await asyncio.gather(*(ask(client, model, ROUTES[0], PROMPTS[0], False, length) for model in asked))
    return list(zip(asked, answers, strict=True))


@dataclass
class Outcome:
    answered: int
    wrong: list[tuple[Case, list[int]]]


async def flood(url: str, expected: dict[Case, list[int]], requests: int, at_once: int) -> Outcome:
    """`requests` requests over all cases in random order, streaming and not, `at_once` in flight."""
    draw = random.Random(0)
    cases = [draw.choice(list(expected)) for _ in range(requests)]
    gate = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(index: int, case: Case) -> list[int]:
            async with gate:
                return await ask(client, *case, stream=index % 2 == 0)

        answers = await asyncio.gather(*(one(index, case) for index, case in enumerate(cases)))
    wrong = [(case, answer) for case, answer in zip(cases, answers, strict=True) if answer != expected[case]]
    return Outcome(len(answers), wrong)
