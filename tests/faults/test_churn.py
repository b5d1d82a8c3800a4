"""Publications and rollbacks without pause while a real server is under load: no request fails, each is answered by a
patch that was served during the request, and memory does not grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from tests.faults.sizes import Sizes
from tests.serving import places
from tests.serving.few_slots import PLACES, FewSlots
from vllm_edit.demo.server import LocalServer
from vllm_edit.progress import Progress
from vllm_edit.store.maintenance import problems_of

pytestmark = pytest.mark.slow

PATCHES, CLIENTS, LOOKS = PLACES + 2, 8, 30
TENANT = "churned"
BODY = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}


@dataclass
class Seen:
    """wrong: requests and changes that failed or were answered by something else. memory: MiB, over time."""

    requests: int = 0
    changes: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def test_churn_under_load_fails_no_request_and_keeps_memory_flat(
    few_slots: FewSlots,
    sizes: Sizes,
    progress: Progress,
    record_property: Callable[[str, object], None],
) -> None:
    store = few_slots.store
    names = [places.add_patch(store, f"churned{number}", number) for number in range(PATCHES)]
    key = few_slots.create_tenant(TENANT, names[0])
    seen = asyncio.run(churned(few_slots, names, key, sizes.churn_seconds, progress))
    record_property("requests", seen.requests)
    record_property("publications and rollbacks", seen.changes)
    assert seen.wrong == []
    assert seen.requests
    assert seen.changes
    assert problems_of(store) == []
    assert store.registry.verify_audit().problems == ()
    if len(seen.memory) >= LOOKS:  # a short run is still warming up: allocators, caches
        third = len(seen.memory) // 3
        early, late = (sum(part) / third for part in (seen.memory[third : 2 * third], seen.memory[-third:]))
        record_property("MiB in the second third", round(early))
        record_property("MiB in the last", round(late))
        assert late < 1.03 * early, f"{early:.0f} MiB in the second third, {late:.0f} in the last"


async def churned(place: FewSlots, names: list[str], key: dict[str, str], seconds: float, progress: Progress) -> Seen:
    """names: the patches, the first of which is served to begin with."""
    seen, ends, begun = Seen(), time.monotonic() + seconds, time.monotonic()
    first, *others = names
    served, settled = [first], 0  # what was or is about to be served, in order; the place that every server follows

    async def ask(client: httpx.AsyncClient) -> None:
        while time.monotonic() < ends:
            since = settled
            reply = await client.post("/v1/completions", json=BODY, headers=key)
            allowed, adapter = served[since:], reply.headers.get("x-vllm-edit-adapter")
            if reply.status_code != 200:
                seen.wrong.append(f"{reply.status_code}: {reply.text[:200]}")
            elif adapter not in allowed or reply.json()["model"] != adapter:
                seen.wrong.append(f"answered by {adapter}, served meanwhile: {', '.join(allowed)}")
            seen.requests += 1

    async def change(client: httpx.AsyncClient) -> None:
        nonlocal settled
        history = [first]
        while time.monotonic() < ends:
            if seen.changes % 4 < 2:  # two publications, then both are taken back
                history.append(others[(seen.changes // 4 + seen.changes) % len(others)])
                path, body = "publish", {"patch": history[-1]}
            else:
                history.pop()
                path, body = "rollback", {}
            served.append(history[-1])
            reply = await client.post(f"/v1/edits/tenants/{TENANT}/{path}", json=body, headers=place.admin)
            if reply.status_code != 200 or reply.json()["active"] != history[-1]:
                seen.wrong.append(f"{path}: {reply.status_code} {reply.text[:200]}")
            settled = len(served) - 1
            seen.changes += 1
            if seen.changes % 20 == 0:
                seen.memory.append(_memory(place.server))
                progress("churning", int(time.monotonic() - begun), int(seconds))

    limits = httpx.Limits(max_connections=CLIENTS + 1)
    async with httpx.AsyncClient(base_url=place.server.url, timeout=120, limits=limits) as client:
        await asyncio.gather(change(client), *(ask(client) for _ in range(CLIENTS)))
    return seen


def _memory(server: LocalServer) -> float:
    """Private memory of the server and its engine, in MiB."""
    parent = psutil.Process(server.pid)
    return sum(process.memory_full_info().uss for process in (parent, *parent.children(recursive=True))) / 2**20
