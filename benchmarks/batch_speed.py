"""Edits per second by r-ROME: many edits in one batch against one at a time.

In float32 both take the same steps. With bfloat16 products the rounding depends on the batch, and the steps differ.

    python -m benchmarks.batch_speed [--count 24] [--seed 1] [--budgets 2048,8192] [--whole] [--store runs/bench]
    python -m benchmarks.batch_speed --model bases/smollm2 --store runs/smollm2 --count 100 --few 4 --threads 1 --whole
    python -m benchmarks.batch_speed --shape llama-3-8b [--change layers=8] [--steps 20]

Both compile the same single-edit patches in one process, with the model loaded and warm. `--budgets` are values of
`RomeSettings.batch_tokens`, the memory budget; peak memory is beside each. CPU seconds are beside wall-clock
seconds, since a machine may have other work. `--few` takes only the first edits for what is done one at a time.
`--whole` switches the optimisations off, one more each time, until every block runs on every token of every row in
every step, as the method's published code does. `--model` is a pretrained model with its store: counterfactual edits of
facts that it knows. `--shape` takes a model with random weights (bfloat16 on a GPU, float32
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

from benchmarks.common.arguments import count, numbers
from benchmarks.common.atlas_edits import open_store, single_patches
from benchmarks.common.model_store import model_store
from benchmarks.common.peak_memory import peak_memory
from benchmarks.common.random_models import SHAPES, random_base, random_site
from benchmarks.common.results_page import machine, write_section
from vllm_edit import atlas
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.editing.compile import compile_patch, compile_separately
from vllm_edit.editing.rome.health import EditHealth
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.site.sites import MadeSite
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.facts import tables_folder
from vllm_edit.facts.counterfactual_edits import draw_edits
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.known_edits import judged_edits
from vllm_edit.facts.stored_pool import pool_of
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch


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

    @property
    def cpu_per_edit(self) -> float:
        return self.cpu_seconds / self.edits


def main() -> None:
    arguments = _arguments()
    console = Console()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.shape:
        work = shaped_work(arguments.shape, arguments.change, arguments.count, arguments.seed, arguments.steps)
    elif arguments.model:
        work = model_work(arguments.model, arguments.store, arguments.count, arguments.seed)
    else:
        work = atlas_work(arguments.store, arguments.count, arguments.seed, console)
    few = arguments.few or arguments.count
    table, compiled = compare(work, arguments.budgets, console, whole=arguments.whole, few=few)
    text = as_markdown(work, table, compiled)
    console.print(text)
    of_model = Path(arguments.model).name if arguments.model else None
    name = "_".join(["batch_speed", *filter(None, [arguments.shape or of_model])])
    data = {"arms": [asdict(row) | {"edits_per_second": row.rate} for row in table], **sameness(*compiled[:2])}
    write_section(name, text, data, command="python -m benchmarks.batch_speed " + " ".join(sys.argv[1:]))


def atlas_work(store: Path, count: int, seed: int, console: Console) -> Work:
    """Single edits of atlas at its store's site, each trained until its margin is reached."""
    base = Base.load("atlas")
    opened = open_store(store, base, console)
    made = MadeSite(opened.site(), SecondMoment.from_tensors(opened.moment()))
    patches = single_patches(HFRunner(base.model, base.tokenizer), count, seed)
    return Work(base, made, tuple(patches), RomeSettings(on_missed="report"))


def model_work(folder: str, url: Path, count: int, seed: int) -> Work:
    """Single counterfactual edits of facts that the model knows, at the site of its store, which is made if needed."""
    base = Base.load(folder)
    store = model_store(str(url), base)
    edits = judged_edits(pool_of(store, base), Facts.load(tables_folder()), base, count, seed=seed)
    bare = [edit.model_copy(update={"probes": ()}) for edit in edits]
    patches = tuple(Patch(name=f"edit-{number:03d}", edits=(edit,)) for number, edit in enumerate(bare))
    made = MadeSite(store.site(), SecondMoment.from_tensors(store.moment()))
    return Work(base, made, patches, RomeSettings(on_missed="report"))


def shaped_work(shape: str, changes: Sequence[str], count: int, seed: int, steps: int) -> Work:
    """The same edits on a random model of a shape; the margin is out of reach, so that every edit takes all steps."""
    base = random_base(shape, SHAPES[shape].changed(changes))
    edits = draw_edits(Facts.load(tables_folder()), count, seed=seed)
    patches = tuple(Patch(name=f"edit-{number:03d}", edits=(edit,)) for number, edit in enumerate(edits))
    settings = RomeSettings(on_missed="report", steps=steps, margin=1e9)
    return Work(base, random_site(base, atlas.texts()), patches, settings)


def compare(
    work: Work, budgets: Sequence[int], console: Console, whole: bool = False, few: int | None = None
) -> tuple[list[Measured], list[Sequence[CompiledPatch]]]:
    """One at a time, under the default budget; then batched under each of `budgets`; then, with `whole`, one at a time
    with the optimisations switched off, one more each time. few: patches of what is done one at a time; default all."""
    some = work.patches[: few or len(work.patches)]
    ways: list[tuple[str, int, Callable[[], Sequence[CompiledPatch]]]] = [_one_by_one("one at a time", work, some)]
    for budget in budgets:
        name = f"batched, {budget} tokens"
        ways.append((name, len(work.patches), lambda budget=budget: _batched(work, budget)))  # type: ignore[misc]
    if whole:
        exact = replace(work, settings=work.settings.replace(fast_products=False))
        forms = replace(exact, settings=exact.settings.replace(first_rows="all"))
        tokens = replace(forms, settings=forms.settings.replace(whole_rows=True))
        # Nothing lies below layer 0, so no block's states are kept from step to step. The module stays what it is.
        lowest = work.made.site.model_copy(update={"layer": 0})
        blocks = replace(tokens, made=MadeSite(lowest, work.made.moment))
        ways.append(_one_by_one("… in float32 throughout", exact, some))
        ways.append(_one_by_one("… and every form from the start", forms, some))
        ways.append(_one_by_one("… and every token of a row", tokens, some))
        ways.append(_one_by_one("… and every block", blocks, some))
    _alone(work, work.patches[0])  # what is computed or allocated once is not counted
    table, compiled = [], []
    for name, edits, way in ways:
        with console.status(f"{name}: {edits} edits ..."), peak_memory() as memory:
            started, used = time.perf_counter(), time.process_time()
            compiled.append(way())
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
        table.append(Measured(name, edits, seconds, cpu_seconds, memory()))
        console.print(f"{name}: {edits} edits, {cpu_seconds / edits:.2f} CPU s each", markup=False)
    return table, compiled


def _one_by_one(
    name: str, work: Work, patches: Sequence[Patch]
) -> tuple[str, int, Callable[[], Sequence[CompiledPatch]]]:
    return name, len(patches), lambda: [_alone(work, patch) for patch in patches]


def _steps(patch: CompiledPatch) -> int:
    """Training steps of the patch's first edit."""
    report = patch.report.edits[0]
    assert isinstance(report, EditHealth)
    return report.steps


def sameness(alone: Sequence[CompiledPatch], batched: Sequence[CompiledPatch]) -> dict[str, Any]:
    """Whether both ways did the same: steps of every edit, edits that missed, and the largest relative change of ΔW.

    Only edits that are in both are compared: the first ones.
    """
    changes = []
    for patch, other in zip(alone, batched, strict=False):
        for module, part in patch.delta.parts.items():
            dense = part.dense()
            changes.append(float((dense - other.delta.parts[module].dense()).norm() / dense.norm()))
    steps = [[_steps(item) for item in made] for made in (alone, batched)]
    missed = [sum(len(item.report.missed) for item in made) for made in (alone, batched)]
    return {
        "same_steps": sum(map(int.__eq__, *steps)) / min(map(len, steps)),
        "mean_steps": [sum(taken) / len(taken) for taken in steps],
        "missed": missed,
        "largest_relative_change": max(changes),
    }


def _alone(work: Work, patch: Patch) -> CompiledPatch:
    return compile_patch(patch, work.base, site=work.made.site, site_tensors=work.made.moment, settings=work.settings)


def _batched(work: Work, budget: int) -> Sequence[CompiledPatch]:
    settings = work.settings.replace(batch_tokens=budget)
    return compile_separately(
        work.patches, work.base, site=work.made.site, site_tensors=work.made.moment, settings=settings
    )


def as_markdown(work: Work, table: Sequence[Measured], compiled: Sequence[Sequence[CompiledPatch]]) -> str:
    """The section of RESULTS.md. Ways that compiled other edits than the first have no ratio to it."""
    found, alone = sameness(*compiled[:2]), table[0]
    lines = [
        f"{len(work.patches)} edits of {work.base.name} ({alone.edits} of them one at a time) at "
        f"{work.made.site.module}, token `{work.made.site.token}`, "
        f"{found['mean_steps'][0]:.1f} steps an edit; the same steps for {found['same_steps']:.0%} of them; edits that "
        f"missed: {found['missed'][0]} and {found['missed'][1]}; ΔW differs by at most "
        f"{found['largest_relative_change']:.1e}. {machine()} {torch.get_num_threads()} threads; load average "
        f"{os.getloadavg()[0]:.1f} at the end.",
        "",
        "| | edits/s | s an edit | CPU s an edit | times as fast | in CPU time | peak memory, MiB above the model |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        ratios = f"{row.rate / alone.rate:.2f} | {alone.cpu_per_edit / row.cpu_per_edit:.2f}"
        lines.append(
            f"| {row.name} | {row.rate:.2f} | {row.seconds / row.edits:.3f} | {row.cpu_per_edit:.3f} | "
            f"{ratios if row.edits == alone.edits else '– | –'} | {row.memory:.0f} |"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=count, default=24, help="edits (default 24)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default 1)")
    parser.add_argument(
        "--budgets",
        type=numbers(int),
        default=[2048, 8192],
        help="token budgets of the batched runs (default 2048,8192)",
    )
    parser.add_argument(
        "--store", type=Path, default=Path("runs/bench"), help="atlas's store to use or make, or --model's"
    )
    parser.add_argument("--few", type=count, help="edits of what is done one at a time (default all)")
    parser.add_argument(
        "--whole", action="store_true", help="also measure with the optimisations switched off, one more each time"
    )
    parser.add_argument("--model", help="a pretrained model's folder instead of atlas")
    parser.add_argument("--threads", type=count, help="processor threads (default torch's)")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="a model with random weights instead of atlas")
    parser.add_argument(
        "--change", action="append", default=[], metavar="FIELD=N", help="one field of the shape; repeatable"
    )
    parser.add_argument("--steps", type=int, default=20, help="steps of every edit with --shape (default 20)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
