"""What an edit costs by every method on a model of a published shape with random weights.

    python -m benchmarks.editor_speed [--shape llama-3-8b] [--change layers=8] [--count 4] [--steps 20]

Every method makes all its steps, since a random model has nothing to reach: r-ROME `--steps` (20 are published), each
other method its own default. The networks of MEND and KnowledgeEditor are untrained: an update costs what a trained
network's costs, and the search for its length, which reaches nothing here, goes through every scale. The weights are
bfloat16 on a GPU, float32 without one. The first edit is not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.arguments import count
from benchmarks.common.atlas_edits import Place
from benchmarks.common.peak_memory import peak_memory
from benchmarks.common.random_models import SHAPES, random_base, random_site
from benchmarks.common.results_page import machine, write_section
from vllm_edit import atlas
from vllm_edit.edit import Edit
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.network_files import Card, network_site
from vllm_edit.editing.network_methods import network_method
from vllm_edit.facts import tables_folder
from vllm_edit.facts.counterfactual_edits import draw_edits
from vllm_edit.facts.facts import Facts
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch

_LAYERS = 3  # whose matrices MEND and KnowledgeEditor edit, as they do by default


@dataclass(frozen=True)
class Cost:
    """One method's edits, one after the other. memory: MiB at the peak, above what the loaded model took before."""

    name: str
    seconds: float
    rank: int
    memory: float


def main() -> None:
    arguments = _arguments()
    once, costs, base = measure(arguments.shape, arguments.change, arguments.count, arguments.steps)
    text = _markdown(base, once, costs, arguments.count)
    Console().print(text)
    command = "python -m benchmarks.editor_speed " + " ".join(sys.argv[1:])
    data = {"once": once, "methods": [asdict(cost) for cost in costs]}
    write_section(f"editor_speed_{arguments.shape}", text, data, command=command)


def measure(shape: str, changes: Sequence[str], count: int, steps: int) -> tuple[dict[str, float], list[Cost], Base]:
    """Seconds of what is done once, every method's cost over `count` edits, and the model."""
    base = random_base(shape, SHAPES[shape].changed(changes))
    edits = draw_edits(Facts.load(tables_folder()), count + 1, seed=1)
    started = time.perf_counter()
    made = random_site(base, atlas.texts())
    once = {"second moment": _since(started, base.device)}
    started = time.perf_counter()
    factor = made.moment.cholesky
    once["its factor"] = _since(started, factor.device)
    swept = Place(made.site, made.moment)
    methods: list[tuple[str, str, Place, Mapping[str, Any]]] = [
        ("r-ROME", "rome", swept, {"steps": steps, "margin": 1e9}),
        ("MEND", "mend", _network_place(base, edits, "mend"), {}),
        ("KnowledgeEditor", "ke", _network_place(base, edits, "ke"), {}),
        ("FT-M", "ft", swept, {"stop_loss": 0.0}),
        ("LoRA", "lora", swept, {"stop_loss": 0.0}),
    ]
    return once, [_cost(base, edits, *method) for method in methods], base


def _cost(base: Base, edits: Sequence[Edit], name: str, method: str, place: Place, settings: Mapping[str, Any]) -> Cost:
    patches = [Patch(name=f"edit-{number:03d}", edits=(edit,)) for number, edit in enumerate(edits)]
    site, site_tensors = place.site, place.site_tensors
    given = {**settings, "on_missed": "report"}
    compile_patch(patches[0], base, method, site=site, site_tensors=site_tensors, settings=given)
    with peak_memory() as memory:
        started = time.perf_counter()
        for patch in patches[1:]:
            compiled = compile_patch(patch, base, method, site=site, site_tensors=site_tensors, settings=given)
        seconds = _since(started, base.device) / (len(patches) - 1)
    return Cost(name, seconds, compiled.manifest.rank, memory())


def _network_place(base: Base, edits: Sequence[Edit], method: str) -> Place:
    """The matrices of an untrained network of the method whose statistics are those of the edits."""
    kind = network_method(method)
    modules = kind.matrices(base, _LAYERS)
    network = kind.new_network(base, modules, kind.settings())
    network.train()
    network.observe(network.inputs(base, edits, example_rows(edits, base.tokenizer), 4096))
    network.eval()
    card = Card(
        digest=network.digest,
        base=base.fingerprint.digest,
        model=base.name,
        modules=modules,
        settings={},
        edits=0,
        subjects=0,
        step=0,
        validation={},
        method=method,
    )
    return Place(network_site(base, network, card), network)


def _since(started: float, device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _markdown(base: Base, once: Mapping[str, float], costs: Sequence[Cost], count: int) -> str:
    dtype = str(base.model.dtype).removeprefix("torch.")
    lines = [
        f"{count} edits of a {base.name} with random weights, {dtype}, one after the other, every step made. Once a "
        f"store: second moment of the least text {once['second moment']:.1f} s; once a process: its Cholesky factor in "
        f"float64 {once['its factor']:.1f} s. {machine()}",
        "",
        "| | s an edit | rank | peak memory, MiB above the model |",
        "|---|---|---|---|",
    ]
    lines += [f"| {cost.name} | {cost.seconds:.2f} | {cost.rank} | {cost.memory:,.0f} |" for cost in costs]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3-8b", help="default llama-3-8b")
    parser.add_argument(
        "--change", action="append", default=[], metavar="FIELD=N", help="one field of the shape; repeatable"
    )
    parser.add_argument("--count", type=count, default=4, help="edits by each method (default 4)")
    parser.add_argument("--steps", type=int, default=20, help="of r-ROME (default 20)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
