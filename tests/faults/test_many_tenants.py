"""Requests of very many tenants at once: every answer is its own tenant's, and no tenant reaches another's patches."""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.asgi import Behind, Header, Sent, send
from tests.faults.sizes import Sizes
from tests.serving import places
from tests.serving.without_engine import Place, run
from vllm_edit.deltas.delta import Delta
from vllm_edit.progress import Progress
from vllm_edit.serving.router import Router
from vllm_edit.serving.server_settings import Settings
from vllm_edit.store.store import Store

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
AT_ONCE = 64
MODES = (":ike", ":base", "", "", "", "", "", "", "", "")
"""Modes of the requests; a prefix for mode ike is made anew each time, so it is asked for less often."""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder that is fast where the machine has memory for one: thousands of small files are synced to it."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


class Crowd(Place):
    """Tenants tenant-0, tenant-1, …, each with a key and a patch of its own; every tenth patch has scope subject."""

    def __init__(self, folder: Path, tenants: int, progress: Progress) -> None:
        template = places.make_store(folder / "made", places.make_site(places.make_model(folder / "model")))
        for number in range(tenants):
            progress("tenants", number, tenants)
            self._make(template, number)
        template.registry.close()
        super().__init__(folder, folder / "made", Settings(store="here", max_answers=AT_ONCE), capacity=2 * tenants)
        self.names = {name.partition("@")[0]: name for name in self.store.names()}
        self.keys = [self.store.registry.create_api_key(f"tenant-{number}").presented for number in range(tenants)]
        self.behind = Behind()
        self.router = Router(self.behind, self.holder)
        run(self.service.watcher.refresh())

    @staticmethod
    def _make(store: Store, number: int) -> None:
        patch, tenant = f"patch-{number}", f"tenant-{number}"
        if number % 10:
            name = places.add_patch(store, patch, number)
        else:
            compiled = places.scoped_patch(store.site(), patch, [(f"Subject{number}",), ("France",)], seed=number)
            name = places.save_accepted(store, compiled)
        store.registry.create_tenant(tenant)
        store.registry.publish(tenant, name)

    def key(self, number: int) -> tuple[Header, ...]:
        return ((b"authorization", f"Bearer {self.keys[number]}".encode()),)


def test_no_request_of_many_tenants_reaches_a_wrong_one(
    memory: Path, sizes: Sizes, progress: Progress, record_property: Record
) -> None:
    crowd = Crowd(memory, sizes.tenants, progress)
    drawn, counts = random.Random(0), Counter[str]()

    async def all_of_them() -> None:
        for begun in range(0, sizes.routed, AT_ONCE):
            progress("requests", begun, sizes.routed)
            asked = [asking(crowd, drawn) for _ in range(min(AT_ONCE, sizes.routed - begun))]
            counts.update(await asyncio.gather(*asked))
            crowd.behind.reached.clear()

    run(all_of_them())
    for name in crowd.slots.held.keys() & crowd.names.values():  # the others are composed for their requests
        assert Delta.load_peft(crowd.slots.held[name]).digest == crowd.store.manifest(name).adapter
    record_property("tenants", sizes.tenants)
    for outcome, count in sorted(counts.items()):
        record_property(outcome, count)
    assert counts["answered by its own patch"] > sizes.routed / 2


async def asking(crowd: Crowd, drawn: random.Random) -> str:
    """One request of a tenant, for itself or for another tenant; checks the answer and returns its result."""
    number, other = drawn.randrange(len(crowd.keys)), drawn.randrange(len(crowd.keys))
    own = drawn.random() < 0.8 or other == number
    who = number if own else other
    ending = drawn.choice(MODES)
    model = drawn.choice([f"tenant-{who}", f"patch-{who}", crowd.names[f"patch-{who}"], *([None] if own else [])])
    if model is None:
        ending = ""
    body = {"prompt": f"The capital of France is, says Subject{number},"}
    if model is not None:
        body["model"] = model + ending
    reply = await send(crowd.router, Sent("POST", "/v1/completions", crowd.key(number), json.dumps(body).encode()))
    if not own:
        assert reply.status == 404
        assert f"patch-{other}@" not in reply.text.replace(str(model), "")
        return "refused what is another's"
    assert reply.status == 200, reply.content
    answer = crowd.service.answers.get(reply.headers["x-vllm-edit-id"])
    assert answer is not None
    assert answer.tenant == f"tenant-{number}"
    passed_on = json.loads(reply.content)
    if ending == ":base":
        assert (passed_on["model"], passed_on["prompt"]) == ("atlas", body["prompt"])
        return "answered by the base"
    assert answer.patch == crowd.names[f"patch-{number}"]
    if ending == ":ike":
        assert passed_on["model"] == "atlas"
        assert f"City{number}\n" in passed_on["prompt"] or number % 10 == 0
        return "answered with its own prefix"
    assert passed_on["model"].partition("@")[0] == f"patch-{number}"
    return "answered by its own patch"
