"""How long composing 512 separately compiled edits takes at the shape of an 8-billion-parameter model, on two cores.

    python -m benchmarks.compose_speed        (make bench-compose)

Random factors at d_ff 14,336, d_out 4,096: keys that share a common direction, so that they interfere as real ones do.
Timed: the joint solve with the delta as it is saved; the plain sum, which is the same edits' deltas along the rank; and
all of `compose` (also conflicts, report and digests). The float64 Gram product is compared with a float32 one, in time
and in what it does to the constraints.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.common.results_page import machine, write_section
from vllm_edit.artefacts.compiled import CompiledPatch, Factors
from vllm_edit.artefacts.manifest import Column, KeyGroup, Manifest
from vllm_edit.composition.compose import compose
from vllm_edit.composition.solver import System, as_saved, constraint_error, solve
from vllm_edit.deltas.delta import Delta
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.digest import digest_tensors
from vllm_edit.edit import Edit
from vllm_edit.errors import Unsolvable

MODULE = "model.layers.5.mlp.down_proj"
COSINE = 0.3
"""Of any two keys: about what edits of one relation have."""


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    keys, whitened, residuals = draw(arguments.edits, arguments.d_in, arguments.d_out)
    load = os.getloadavg()[0]
    groups = list(range(arguments.edits))

    def joint() -> tuple[System, LowRank]:
        system = System.of(keys, whitened, groups, arguments.damping)
        return system, as_saved(solve(system, residuals))

    members = [
        single(number, keys[number], whitened[number], residuals[number], arguments.damping)
        for number in track(groups, "making patches", console=console)
    ]

    def summed() -> Delta:
        return Delta.concatenate([member.delta for member in members])

    data: dict[str, Any] = {
        "edits": arguments.edits,
        "d_in": arguments.d_in,
        "d_out": arguments.d_out,
        "damping": arguments.damping,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "load_before": round(load, 2),
        "seconds": {
            "joint": timed(joint, arguments.repeats, console, "joint solve and delta"),
            "sum": timed(summed, arguments.repeats, console, "plain sum"),
            "compose": timed(lambda: compose(members), arguments.repeats, console, "all of compose"),
        },
        "gram": gram_products(keys, whitened, residuals, arguments.repeats, console),
    }
    data["ratio"] = data["seconds"]["joint"]["processor"] / data["seconds"]["sum"]["processor"]
    text = _markdown(data)
    console.print(text, markup=False)
    write_section("compose_speed", text, data, command="python -m benchmarks.compose_speed " + " ".join(sys.argv[1:]))


def draw(edits: int, d_in: int, d_out: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K and C⁻¹K [edits, d_in] for a diagonal C whose eigenvalues span three decades, and R [edits, d_out]; float32."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.logspace(0, -3, d_in, dtype=torch.float64)
    common = torch.randn(1, d_in, dtype=torch.float64, generator=generator)
    own = torch.randn(edits, d_in, dtype=torch.float64, generator=generator)
    keys = (COSINE**0.5 * common + (1 - COSINE) ** 0.5 * own) * spectrum.sqrt()
    residuals = torch.randn(edits, d_out, generator=generator)
    return keys.float(), (keys / spectrum).float(), residuals


def single(
    number: int, key: torch.Tensor, whitened: torch.Tensor, residual: torch.Tensor, damping: float
) -> CompiledPatch:
    """One edit's compiled patch with these factors."""
    factors = Factors(key[None], whitened[None], residual[None])
    system = System.of(factors.keys, factors.whitened, [0], damping)
    delta = Delta({MODULE: as_saved(solve(system, factors.residuals))})
    subject = f"Subject {number}"
    manifest = Manifest(
        patch=f"edit-{number}",
        method="rome",
        base="0" * 32,
        site="0" * 32,
        modules=(MODULE,),
        edits=(Edit(prompt=f"The capital of {subject} is", subject=subject, relation="capital", target_new="Paris"),),
        settings={"damping": damping},
        groups=(KeyGroup(edits=(0,)),),
        columns=(Column(group=0, form="plain"),),
        rank=1,
        adapter=delta.digest,
        factors=digest_tensors(factors.tensors()),
    )
    return CompiledPatch(manifest, delta, factors)


def timed(call: Callable[[], Any], repeats: int, console: Console, what: str) -> dict[str, float]:
    """Median and fastest of some repeats in seconds, after one to warm up; and processor time, over all threads."""
    call()
    seconds, processor = [], []
    for _ in track(range(repeats), what, console=console):
        started, worked = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - worked)
    return {"median": statistics.median(seconds), "least": min(seconds), "processor": statistics.median(processor)}


def gram_products(
    keys: torch.Tensor, whitened: torch.Tensor, residuals: torch.Tensor, repeats: int, console: Console
) -> dict[str, Any]:
    """float64 against float32 Gram product at λ = 0: time, relative difference, and the worst constraint after solving.

    Both solutions are judged against the exact constraints, in float64; also with keys that all but coincide.
    """
    found: dict[str, Any] = {}
    groups = list(range(len(keys)))
    nearly = keys.clone(), whitened.clone()
    nearly[0][1::2] = keys[0::2] + 1e-2 * keys[1::2]  # pairs of cosine 1 − 5e-5: the solver still accepts them
    nearly[1][1::2] = whitened[0::2] + 1e-2 * whitened[1::2]
    for name, (K, W) in {"apart": (keys, whitened), "nearly coinciding": nearly}.items():
        exact = System.of(K, W, groups)
        product = (K @ W.T).double()
        rounded = System(K, W, (product + product.T) / 2, exact.groups, exact.shares)
        errors: dict[str, float | None] = {}
        for precision, system in (("float64", exact), ("float32", rounded)):
            try:
                errors[precision] = float(constraint_error(exact, residuals, solve(system, residuals)).max())
            except Unsolvable:
                errors[precision] = None
        difference = float((rounded.gram - exact.gram).abs().max() / exact.gram.abs().max())
        found[name] = {"difference": difference, "constraint_error": errors}
    found["seconds"] = {
        "float64": timed(lambda: System.of(keys, whitened, groups), repeats, console, "float64 product"),
        "float32": timed(lambda: keys @ whitened.T, repeats, console, "float32 product"),
    }
    return found


def _markdown(data: dict[str, Any]) -> str:
    seconds, gram = data["seconds"], data["gram"]
    lines = [
        f"{data['edits']} edits of one column each, d_ff {data['d_in']:,}, d_out {data['d_out']:,}, λ "
        f"{data['damping']:g}; random factors with cosine {COSINE} between any two keys. {data['threads']} threads.",
        f"{machine()} Load average before: {data['load_before']}.",
        "",
        f"| | median of {data['repeats']}, s | fastest, s | processor time of all threads, s |",
        "|---|---|---|---|",
    ]
    names = {
        "joint": "joint solve and delta",
        "sum": "plain sum: the deltas along the rank",
        "compose": "all of `compose`: conflicts, solve, report, digests",
    }
    for name, label in names.items():
        took = seconds[name]
        lines.append(f"| {label} | {took['median']:.2f} | {took['least']:.2f} | {took['processor']:.2f} |")
    lines += [
        "",
        f"Processor time joint / sum: {data['ratio']:.2f}. The Gram product is in float64, of which it takes "
        f"{gram['seconds']['float64']['processor']:.2f} s; in float32 {gram['seconds']['float32']['processor']:.2f} s.",
        "Worst constraint ‖Δk − r‖/‖r‖ at λ = 0 with either:",
        "",
        "| keys | float64 | float32 | largest relative difference of the products |",
        "|---|---|---|---|",
    ]
    for name in ("apart", "nearly coinciding"):
        errors = [_error(gram[name]["constraint_error"][precision]) for precision in ("float64", "float32")]
        lines.append(f"| {name} | {' | '.join(errors)} | {gram[name]['difference']:.1e} |")
    return "\n".join(lines)


def _error(value: float | None) -> str:
    return "no solution" if value is None else f"{value:.1e}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=512)
    parser.add_argument("--d-in", type=int, default=14_336)
    parser.add_argument("--d-out", type=int, default=4_096)
    parser.add_argument("--damping", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
