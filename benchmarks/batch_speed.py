"""Edits per second by r-ROME: many edits in one batch against one at a time, with the same steps and results.

    python -m benchmarks.batch_speed [--count 24] [--seed 1] [--budgets 2048,8192] [--whole] [--store runs/bench]
    python -m benchmarks.batch_speed --shape llama-3-8b [--change layers=8] [--steps 20]

Both compile the same single-edit patches in one process, with the model loaded and warm. `--budgets` are values of
`RomeSettings.batch_tokens`, the memory budget; peak memory is told beside each. CPU seconds are told beside wall-clock
seconds, since a machine may have other work. `--whole` adds one at a time with every block run in every step, as the
method's published code does. `--shape` takes a model with random weights (bfloat16 on a GPU, float32
without one) whose edits all take `--steps` steps: a random model has nothing to reach.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.drawn import open_store, single_patches
from benchmarks.memory import peak_memory
from benchmarks.numbers import count, numbers
from benchmarks.results import machine, write_section
from benchmarks.shapes import SHAPES, random_base, random_site
from vllm_edit import atlas
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.separately import compile_separately
from vllm_edit.editing.settings import RomeSettings
from vllm_edit.editing.sites import MadeSite
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.facts import tables_folder
from vllm_edit.facts.edits import draw_edits
from vllm_edit.facts.facts import Facts
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.store.compiled import CompiledPatch


@dataclass(frozen=True)
class Work:
    """What is compiled, and where."""

    base: Base
    made: MadeSite
    patches: tuple[Patch, ...]
    settings: RomeSettings


@dataclass(frozen=True)
class Measured:
    """One way of compiling all patches. memory: MiB at the peak, above what the loaded model took before."""

    name: str
    edits: int
    seconds: float
    cpu_seconds: float
    memory: float

    @property
    def rate(self) -> float:
        return self.edits / self.seconds


def main() -> None:
    arguments = _arguments()
    console = Console()
    if arguments.shape:
        work = shaped_work(arguments.shape, arguments.change, arguments.count, arguments.seed, arguments.steps)
    else:
        work = atlas_work(arguments.store, arguments.count, arguments.seed, console)
    table, compiled = compare(work, arguments.budgets, console, whole=arguments.whole)
    text = _markdown(work, table, compiled)
    console.print(text)
    name = f"batch_speed_{arguments.shape}" if arguments.shape else "batch_speed"
    data = {"arms": [asdict(one) | {"edits_per_second": one.rate} for one in table], **sameness(*compiled[:2])}
    write_section(name, text, data, command="python -m benchmarks.batch_speed " + " ".join(sys.argv[1:]))


def atlas_work(store: Path, count: int, seed: int, console: Console) -> Work:
    """Single edits of atlas at its store's site, each trained until its margin is reached."""
    base = Base.load("atlas")
    opened = open_store(store, base, console)
    made = MadeSite(opened.site(), SecondMoment.from_tensors(opened.moment()))
    patches = single_patches(HFRunner(base.model, base.tokenizer), count, seed)
    return Work(base, made, tuple(patches), RomeSettings(on_missed="report"))


def shaped_work(shape: str, changes: Sequence[str], count: int, seed: int, steps: int) -> Work:
    """The same edits on a random model of a shape; the margin is out of reach, so that every edit takes all steps."""
    base = random_base(shape, SHAPES[shape].changed(changes))
    edits = draw_edits(Facts.load(tables_folder()), count, seed=seed)
    patches = tuple(Patch(name=f"edit-{number:03d}", edits=(edit,)) for number, edit in enumerate(edits))
    settings = RomeSettings(on_missed="report", steps=steps, margin=1e9)
    return Work(base, random_site(base, atlas.texts()), patches, settings)


def compare(
    work: Work, budgets: Sequence[int], console: Console, whole: bool = False
) -> tuple[list[Measured], list[Sequence[CompiledPatch]]]:
    """One at a time, under the default budget; then batched under each of `budgets`; then, with `whole`, one at a time
    with every block run in every step."""
    ways: list[tuple[str, Callable[[], Sequence[CompiledPatch]]]] = [
        ("one at a time", lambda: [_alone(work, patch) for patch in work.patches])
    ]
    for budget in budgets:
        ways.append((f"batched, {budget} tokens", lambda budget=budget: _batched(work, budget)))  # type: ignore[misc]
    if whole:
        # Nothing lies below layer 0, so no block's states are kept from step to step. The module stays what it is.
        lowest = work.made.site.model_copy(update={"layer": 0})
        every = replace(work, made=MadeSite(lowest, work.made.moment))
        ways.append(("one at a time, every block in every step", lambda: [_alone(every, p) for p in every.patches]))
    _alone(work, work.patches[0])  # what is computed or allocated once is not counted
    table, compiled = [], []
    for name, way in ways:
        with console.status(f"{name}: {len(work.patches)} edits ..."), peak_memory() as memory:
            started, used = time.perf_counter(), time.process_time()
            compiled.append(way())
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
        table.append(Measured(name, len(work.patches), seconds, cpu_seconds, memory()))
    return table, compiled


def sameness(alone: Sequence[CompiledPatch], batched: Sequence[CompiledPatch]) -> dict[str, Any]:
    """Whether both ways did the same: steps of every edit, edits that missed, and the largest relative change of ΔW."""
    changes = []
    for one, other in zip(alone, batched, strict=True):
        for module, part in one.delta.parts.items():
            dense = part.dense()
            changes.append(float((dense - other.delta.parts[module].dense()).norm() / dense.norm()))
    steps = [[one.report["edits"][0]["steps"] for one in made] for made in (alone, batched)]
    missed = [sum(len(one.report["missed"]) for one in made) for made in (alone, batched)]
    return {
        "same_steps": sum(map(int.__eq__, *steps)) / len(alone),
        "mean_steps": [sum(taken) / len(taken) for taken in steps],
        "missed": missed,
        "largest_relative_change": max(changes),
    }


def _alone(work: Work, patch: Patch) -> CompiledPatch:
    return compile_patch(patch, work.base, site=work.made.site, moment=work.made.moment, settings=work.settings)


def _batched(work: Work, budget: int) -> Sequence[CompiledPatch]:
    settings = replace(work.settings, batch_tokens=budget)
    return compile_separately(work.patches, work.base, site=work.made.site, moment=work.made.moment, settings=settings)


def _markdown(work: Work, table: Sequence[Measured], compiled: Sequence[Sequence[CompiledPatch]]) -> str:
    found, alone = sameness(*compiled[:2]), table[0]
    lines = [
        f"{len(work.patches)} edits of {work.base.name} at {work.made.site.module}, token `{work.made.site.token}`, "
        f"{found['mean_steps'][0]:.1f} steps an edit; the same steps for {found['same_steps']:.0%} of them; edits that "
        f"missed: {found['missed'][0]} and {found['missed'][1]}; ΔW differs by at most "
        f"{found['largest_relative_change']:.1e}. {machine()} {torch.get_num_threads()} threads; load average "
        f"{os.getloadavg()[0]:.1f} at the end.",
        "",
        "| | edits/s | s an edit | CPU s an edit | times as fast | in CPU time | peak memory, MiB above the model |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in table:
        lines.append(
            f"| {one.name} | {one.rate:.2f} | {one.seconds / one.edits:.3f} | {one.cpu_seconds / one.edits:.3f} | "
            f"{alone.seconds / one.seconds:.2f} | {alone.cpu_seconds / one.cpu_seconds:.2f} | {one.memory:.0f} |"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=count, default=24, help="edits (default 24)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default 1)")
    parser.add_argument(
        "--budgets",
        type=numbers(int),
        default=[2048, 8192],
        help="token budgets of the batched runs (default 2048,8192)",
    )
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="atlas's store to use or make")
    parser.add_argument("--whole", action="store_true", help="also one at a time with every block run in every step")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="a model with random weights instead of atlas")
    parser.add_argument("--change", action="append", default=[], metavar="FIELD=N", help="of the shape; repeatable")
    parser.add_argument("--steps", type=int, default=20, help="steps of every edit with --shape (default 20)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
