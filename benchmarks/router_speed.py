"""What the router adds to a request when 10,000 subjects are edited, and what the first use of a pair of them costs.

    python -m benchmarks.router_speed [--subjects 10000] [--requests 5000] [--body 1000]

The real router, scope, residency and store in one process; only the engine is left out (loading an adapter into it is a
no-op here, and 4–9 ms in vLLM). Requests come one after the other: this is the router's own time, not a queue.
Router time is what the server itself reports of every answer: from the full body to the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from rich.console import Console

from benchmarks.common.percentiles import percentile
from benchmarks.common.results_page import machine, write_section
from vllm_edit.artefacts.compiled import CompiledPatch, Factors
from vllm_edit.artefacts.manifest import Column, KeyGroup, Manifest
from vllm_edit.artefacts.site import Context, Fingerprint, Site
from vllm_edit.cli.output import progress_bar
from vllm_edit.composition.scoped import assemble
from vllm_edit.composition.solver import System, as_saved, solve
from vllm_edit.deltas.delta import Delta
from vllm_edit.digest import digest_tensors
from vllm_edit.edit import Edit
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress
from vllm_edit.serving.build import make_service
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.residency import GRACE_S
from vllm_edit.serving.router import ID_HEADER, Router
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.service import Holder, Service
from vllm_edit.store.last_state import LastState
from vllm_edit.store.store import Store

SMALL, LARGE = (64, 64), (14_336, 4_096)
"""(d_in, d_out): the router's time does not depend on them; a pair's first use does (Llama-3-8B's down_proj)."""
COLUMNS = 14
PAIRS = 30
ROUNDS = 20
_SYLLABLES = tuple(first + last for first in "bdklmnrs" for last in "aeio")


def main() -> None:
    arguments = _arguments()
    console = Console()
    names = drawn_names(arguments.subjects, random.Random("names"))
    with TemporaryDirectory() as folder, progress_bar("router speed") as progress:
        store, whole = stored(Path(folder) / "small", SMALL, names, 1, progress)
        rows = asyncio.run(measured(store, whole, names, arguments.requests, arguments.body, progress))
        large, pairs = stored(Path(folder) / "large", LARGE, names[:PAIRS], COLUMNS, progress)
        first = asyncio.run(first_uses(large, pairs, names[:PAIRS]))
    data = {"subjects": arguments.subjects, "body": arguments.body, "rows": rows, "first_use_of_a_pair": first}
    text = table(data)
    console.print(text)
    command = " ".join(["python -m benchmarks.router_speed", *sys.argv[1:]])
    write_section("router_speed", text, {**data, "machine": machine()}, command=command)


def drawn_names(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(name, alias) of each subject, all different; some lie within others, as real ones do."""
    drawn: dict[str, None] = {}
    while len(drawn) < 2 * count:
        words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4))).capitalize() for _ in range(rng.randint(1, 3))]
        drawn[" ".join(words)] = None
    found = list(drawn)
    return list(zip(found[:count], found[count:], strict=True))


def stored(
    folder: Path,
    shape: tuple[int, int],
    names: Sequence[tuple[str, str]],
    columns: int,
    progress: Progress,
) -> tuple[Store, str]:
    """A store with a scoped patch of random units at a site of that shape; returns the patch's name too."""
    d_in, d_out = shape
    moment = {"matrix": torch.zeros(1)}
    prints = {key: key * 8 for key in ("config", "weights", "tokenizer", "chat_template")}
    site = Site(
        base=Fingerprint(**prints),
        model="none",
        modules=("model.layers.0.mlp.down_proj",),
        layer=0,
        token="last",
        d_in=d_in,
        d_out=d_out,
        contexts=(Context(),),
        second_moment=digest_tensors(moment),
        second_moment_count=1,
        ridge=0.0,
        damping=0.1,
        residual_scale=1.0,
        max_rank=16,
        slots=16,
    )
    generator = torch.Generator().manual_seed(0)
    units = []
    for number, own in enumerate(names):
        if number % 500 == 0:
            progress(f"making {d_in} × {d_out}", number, len(names))
        units.append(_unit(site, own, columns, generator))
    declared = Patch(name="many", scope="subject", edits=tuple(unit.manifest.edits[0] for unit in units))
    store = Store.create(folder, site, moment)
    return store, store.save(assemble(declared, units))


def _unit(site: Site, names: tuple[str, str], columns: int, generator: torch.Generator) -> CompiledPatch:
    """One random edit of one subject."""
    keys = torch.randn(columns, site.d_in, generator=generator)
    residuals = torch.randn(1, site.d_out, generator=generator)
    factors = Factors(keys, keys / site.d_in, residuals)
    system = System.of(keys, factors.whitened, [0] * columns, site.damping)
    delta = Delta({site.module: as_saved(solve(system, residuals))})
    edit = Edit(
        prompt=f"The place of {names[0]} is", subject=names[0], relation="place", target_new="x", aliases=names[1:]
    )
    manifest = Manifest(
        patch="many",
        method="rome",
        base=site.base.digest,
        site=site.digest,
        modules=site.modules,
        edits=(edit,),
        settings={"damping": site.damping},
        groups=(KeyGroup(edits=(0,)),),
        columns=tuple(Column(group=0, form="plain") for _ in range(columns)),
        rank=1,
        adapter=delta.digest,
        factors=digest_tensors(factors.tensors()),
    )
    return CompiledPatch(manifest, delta, factors)


class NoEngine:
    """Takes adapters and forgets them."""

    base_names = ("base",)
    max_rank, max_model_len, max_prompts = 16, 512, 64
    slots, capacity = 0, 4096

    def count_tokens(self, text: str) -> int:
        return len(text)

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    async def add(self, name: str, number: int, path: str) -> None: ...
    async def remove(self, name: str, number: int) -> None: ...


@dataclass
class Client:
    """Requests through the router to an application that answers with nothing."""

    service: Service
    router: Router

    @classmethod
    def of(cls, store: Store, folder: Path) -> Client:
        metrics, kept = Metrics(CollectorRegistry()), LastState(folder / "state.json")
        settings = Settings(store=store.url)
        service = make_service(store, store.site(), NoEngine(), settings, metrics, kept, GRACE_S)
        return cls(service, Router(_nothing, Holder(service)))

    async def ask(self, model: str, prompt: str) -> float:
        """The router's time for one request, in seconds."""
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 16}).encode()
        headers: dict[bytes, bytes] = {}

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200
                headers.update(message["headers"])

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        await self.router(scope, receive, send)
        answer = self.service.answers.get(headers[ID_HEADER.lower().encode()].decode())
        assert answer is not None
        return answer.router_seconds


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def measured(
    store: Store,
    patch: str,
    names: Sequence[tuple[str, str]],
    requests: int,
    body: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Router time by what a prompt mentions, all adapters loaded before; prompts of `body` characters."""
    rng = random.Random("prompts")
    with TemporaryDirectory(prefix="vllm-edit-router-") as folder:
        client = Client.of(store, Path(folder))
        await client.service.watcher.refresh()
        pool = rng.sample(names, k=50)
        rows: list[dict[str, Any]] = []
        cases = {"base": ("base", 0), "no subject": (patch, 0), "one subject": (patch, 1), "two subjects": (patch, 2)}
        for case, (model, count) in cases.items():
            progress(case, len(rows), len(cases))
            chosen = [rng.sample(pool, k=count) for _ in range(min(requests, 200))]
            prompts = [_prompt([rng.choice(subjects) for subjects in some], body, rng) for some in chosen]
            for prompt in prompts:
                await client.ask(model, prompt)
            seconds = [await client.ask(model, prompts[number % len(prompts)]) for number in range(requests)]
            rows.append({"mentions": case, "requests": requests, **_of_rounds(seconds)})
        client.service.folder.cleanup()
    return rows


async def first_uses(store: Store, patch: str, names: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Milliseconds of a request that is the first with its pair: read, solve, vouch, write, hand over."""
    with TemporaryDirectory(prefix="vllm-edit-router-") as folder:
        client = Client.of(store, Path(folder))
        await client.service.watcher.refresh()
        await client.ask(patch, "nothing")  # the index
        await client.ask(patch, f"{names[0][0]} and {names[1][0]}")  # imports
        seconds = [await client.ask(patch, f"{one[0]} and {other[0]}") for one, other in pairwise(names[1:])]
        client.service.folder.cleanup()
    return _percentiles(seconds)


def _prompt(named: Sequence[str], length: int, rng: random.Random) -> str:
    """Text of that length with these names in it, of words that name nothing."""
    words = ["Tell", "me", *named]
    while sum(map(len, words)) + len(words) < length:
        words.insert(rng.randrange(len(words) + 1) if not named else len(words), rng.choice(("what", "then", "there")))
    return " ".join(words)[:length]


def _of_rounds(seconds: Sequence[float]) -> dict[str, float]:
    """The median of the rounds' percentiles: a few rounds in which another program took the core do not count."""
    size = max(2, len(seconds) // ROUNDS)
    rounds = [_percentiles(seconds[start : start + size]) for start in range(0, len(seconds) - size + 1, size)]
    return {key: statistics.median(medians[key] for medians in rounds) for key in rounds[0]}


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}_ms": 1000 * percentile(seconds, percent) for percent in (50, 99)}


def table(data: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    first = data["first_use_of_a_pair"]
    lines = [
        f"{data['subjects']} edited subjects, each with one alias; prompts of {data['body']} characters, one request "
        f"at a time, adapters loaded before; medians of {ROUNDS} rounds' percentiles. {machine()}",
        "",
        "| a prompt that mentions | router p50 | router p99 |",
        "|---|---|---|",
    ]
    for row in data["rows"]:
        lines.append(f"| {row['mentions']} | {1000 * row['p50_ms']:.0f} µs | {1000 * row['p99_ms']:.0f} µs |")
    lines += [
        "",
        f"First use of a pair at d_ff {LARGE[0]}, d_out {LARGE[1]}, {COLUMNS} columns a subject (read, joint solve, "
        f"vouch, write; without the engine's 4–9 ms): p50 {first['p50_ms']:.0f} ms, p99 {first['p99_ms']:.0f} ms.",
    ]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--subjects", type=int, default=10_000, help="edited subjects (default 10,000)")
    parser.add_argument("--requests", type=int, default=5000, help="requests of each kind (default 5,000)")
    parser.add_argument("--body", type=int, default=1000, help="characters of a prompt (default 1,000)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
