"""What serving patches costs in time: the same prompts to a plain vLLM server, and to ours as base, weights and IKE.

    python -m benchmarks.latency [--requests 300] [--rounds 2] [--store runs/bench]

Plain is stock vLLM without our plugin and without LoRA. Ours wraps the store's site, so "base" is what tenants without
a patch pay. Both run alone on the machine, in turns; within a turn of ours the three modes take turns too. Every
answer has the same number of tokens, and every prompt is asked once by each, so that no answer is read from a cache
that the others lack. The result goes into RESULTS.md with machine and command.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress, TaskID

from benchmarks.common.percentiles import percentile
from benchmarks.common.results_page import machine, write_section
from vllm_edit import atlas
from vllm_edit.demo.process import ServerProcess
from vllm_edit.demo.server import LocalServer
from vllm_edit.errors import EditError
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.release.pipeline import Pipeline
from vllm_edit.release.swept_store import open_or_create
from vllm_edit.serving.profile import profile
from vllm_edit.serving.served_model import served_model
from vllm_edit.store.store import Store

ARMS = ("plain", "base", "weights", "ike")
CONCURRENCY = (1, 16)
TOKENS = 16
WARM_UP = 16
BLOCK = 32
"""Prompts that one mode is asked in a row."""


@dataclass(frozen=True)
class Timed:
    """Seconds from sending to the first token, and to the end of the answer."""

    first: float
    whole: float


def main() -> None:
    arguments = _arguments()
    console = Console()
    store, name = _prepared(arguments.store, arguments.patch, console)
    samples: dict[tuple[str, int], list[Timed]] = {}
    share = arguments.requests // arguments.rounds
    with Progress(console=console) as bar:
        task = bar.add_task("starting", total=arguments.rounds * share * len(ARMS) * len(CONCURRENCY))
        for turn in range(arguments.rounds):
            # The same prompts for every arm and concurrency of a turn; other ones in the next.
            prompts = _prompts(turn, WARM_UP + share)
            models = served_model(store.site().model)
            with _plain(store, arguments.logs / "plain.log") as server:
                asyncio.run(_measure(server.url, {"plain": models[1]}, prompts, samples, bar, task))
            with LocalServer(store.url, arguments.logs / "ours.log") as server:
                ours = {"base": models[1], "weights": name, "ike": f"{name}:ike"}
                asyncio.run(_measure(server.url, ours, prompts, samples, bar, task))
    rows = [_row(arm, concurrency, samples) for concurrency in CONCURRENCY for arm in ARMS]
    text = _markdown(rows, arguments, name)
    console.print(text)
    data = {"rows": rows, "tokens": TOKENS, "requests": share * arguments.rounds}
    write_section("latency", text, data, command=" ".join(["python -m benchmarks.latency", *sys.argv[1:]]))


def _prepared(folder: Path, patch: Path, console: Console) -> tuple[Store, str]:
    """The store, and the name of the patch that it serves."""
    base = Base.load("atlas")
    with console.status("choosing the site, compiling ..."):
        store, _ = open_or_create(folder, base, atlas.sweep_edits(), atlas.texts(), atlas.passages())
        outcome = Pipeline(store, base, Bank.from_records(atlas.bank())).run(Patch.load(patch))
    return store, outcome.name


def _plain(store: Store, log: Path) -> ServerProcess:
    """Stock vLLM with the flags that have nothing to do with patches, and no plugin at all."""
    path, name = served_model(store.site().model)
    flags = profile(store.site(), store.url, path, name)
    kept = [flag for flag in flags.flags if flag in ("--enforce-eager",)]
    dtype = flags.flags[flags.flags.index("--dtype") + 1]
    command = [sys.executable, "-m", "vllm_edit.serving.launch", "serve", path, "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--dtype", dtype, *kept]
    return ServerProcess(command, log, {**flags.environment, "VLLM_PLUGINS": ""})


def _prompts(turn: int, count: int) -> list[str]:
    facts = list(Facts.load(tables_folder()))
    drawn = random.Random(f"latency:{turn}").sample(facts, min(count, len(facts)))
    if len(drawn) < count:
        raise EditError(f"there are {len(facts)} prompts, {count} are needed: ask for fewer --requests a round")
    return [fact.relation.trained[0].fill(fact.subject.name) for fact in drawn]


async def _measure(
    url: str,
    models: dict[str, str],
    prompts: Sequence[str],
    samples: dict[tuple[str, int], list[Timed]],
    bar: Progress,
    task: TaskID,
) -> None:
    """Ask every model all prompts, by blocks in turn, at every concurrency; the first prompts only warm up."""
    most = max(CONCURRENCY)
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        for model in models.values():
            await _ask(client, model, prompts[:WARM_UP], most)
        for concurrency in CONCURRENCY:
            # A prompt asked at both concurrencies differs in its first token: no prefix is cached from before.
            texts = [f"{concurrency}. {prompt}" for prompt in prompts[WARM_UP:]]
            for start in range(0, len(texts), BLOCK):
                for arm, model in models.items():
                    bar.update(task, description=f"{arm}, {concurrency} at once")
                    block = texts[start : start + BLOCK]
                    samples.setdefault((arm, concurrency), []).extend(await _ask(client, model, block, concurrency))
                    bar.advance(task, len(block))


async def _ask(client: httpx.AsyncClient, model: str, prompts: Sequence[str], concurrency: int) -> list[Timed]:
    """Every prompt once, `concurrency` at any moment."""
    room = asyncio.Semaphore(concurrency)

    async def one(prompt: str) -> Timed:
        async with room:
            return await _stream(client, model, prompt)

    return list(await asyncio.gather(*map(one, prompts)))


async def _stream(client: httpx.AsyncClient, model: str, prompt: str) -> Timed:
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    first = None
    started = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body | {"ignore_eos": True}) as answer:
        if answer.status_code != 200:
            raise EditError(f"{model} answered {answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if first is None and line.startswith("data: {"):
                first = time.perf_counter() - started
    whole = time.perf_counter() - started
    if first is None:
        raise EditError(f"{model} gave no token for {prompt!r}")
    return Timed(first, whole)


def _row(arm: str, concurrency: int, samples: dict[tuple[str, int], list[Timed]]) -> dict[str, Any]:
    """Medians and 99th percentiles in milliseconds, and how many times plain's they are."""

    def quantiles_of(of: str) -> dict[str, float]:
        own = [getattr(sample, of) for sample in samples[arm, concurrency]]
        plain = [getattr(sample, of) for sample in samples["plain", concurrency]]
        return {
            "median_ms": 1000 * statistics.median(own),
            "p99_ms": 1000 * percentile(own, 99),
            "median_ratio": statistics.median(own) / statistics.median(plain),
            "p99_ratio": percentile(own, 99) / percentile(plain, 99),
        }

    n = len(samples[arm, concurrency])
    return {
        "arm": arm,
        "concurrency": concurrency,
        "n": n,
        "first_token": quantiles_of("first"),
        "request": quantiles_of("whole"),
    }


def _markdown(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace, name: str) -> str:
    lines = [
        f"{rows[0]['n']} prompts, {TOKENS} tokens each, streamed; in {arguments.rounds} turns. plain: vLLM without our "
        f"plugin and without LoRA; base: ours, no patch; weights, ike: {name.partition('@')[0]}. Milliseconds, and in "
        f"brackets how many times plain's. {machine()}",
        "",
        "| at once | asked | first token, median | first token, p99 | request, median | request, p99 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row[what][f'{which}_ms']:.1f} ({row[what][f'{which}_ratio']:.2f}×)"
            for what in ("first_token", "request")
            for which in ("median", "p99")
        ]
        lines.append(f"| {row['concurrency']} | {row['arm']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=300, help="of each arm at each concurrency (default 300)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of both servers (default 2)")
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="store to use or make")
    parser.add_argument("--patch", type=Path, default=Path("patches/acme.yaml"), help="the patch that is served")
    parser.add_argument("--logs", type=Path, default=Path("runs/latency"), help="folder of the servers' logs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
