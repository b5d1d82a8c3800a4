"""What each part of KnowledgeEditor's network adds, on single edits of subjects that `methods` does not edit.

    python -m benchmarks.knowledge_editor_parts [--count 60] [--seed 5] [--network FOLDER]

A row is the trained network without some of its parts, compiled with the default settings: without the strengths of
single tokens, without the gate, without the shift, or without all of them. What is left then is the gradient. Without
the text, gate and shift are those of the next edit of the batch.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.atlas_edits import single_patches
from benchmarks.common.report_rows import NAMES, SETTINGS, cells, row
from benchmarks.common.results_page import machine, write_section
from benchmarks.network_lengths import JUDGED_COUNT, JUDGED_SEED
from vllm_edit.atlas.hypernetworks import NETWORK_FOLDERS
from vllm_edit.cli.output import progress_bar
from vllm_edit.editing.compile import compile_separately
from vllm_edit.editing.knowledge_editor.editor_network import KnowledgeEditor
from vllm_edit.editing.knowledge_editor.gradient_gate import GradientGate
from vllm_edit.editing.network_files import load, network_site
from vllm_edit.evaluation.evaluate import evaluate
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.models.base import Base

WITHOUT: Mapping[str, tuple[str, ...]] = {
    "whole": (),
    "without the strengths of tokens": ("strengths",),
    "without the gate": ("gate",),
    "without the shift": ("shift",),
    "without the edit's own text": ("text",),
    "the gradient alone": ("strengths", "gate", "shift"),
}
"""Row of the table → the parts that are left out."""


def main() -> None:
    arguments = _arguments()
    base = Base.load("atlas")
    network, card = load(arguments.network or NETWORK_FOLDERS["ke"])
    if not isinstance(network, KnowledgeEditor):
        raise SystemExit(f"--network must name a network of KnowledgeEditor; got one of {card.method}")
    site = network_site(base, network, card)
    runner = HFRunner(base.model, base.tokenizer)
    judged = {patch.edits[0].subject for patch in single_patches(runner, JUDGED_COUNT, JUDGED_SEED)}
    drawn = single_patches(runner, JUDGED_COUNT, arguments.seed)
    patches = [patch for patch in drawn if patch.edits[0].subject not in judged][: arguments.count]
    rows = []
    for name, parts in WITHOUT.items():
        reduced = without(network, parts)
        with progress_bar(name) as progress:
            compiled = compile_separately(
                patches,
                base,
                "ke",
                site=site,
                site_tensors=reduced,
                settings={"on_missed": "report"},
                progress=progress,
            )
            report = evaluate(compiled, runner, ("base", "weights"), SETTINGS, progress)
        scales = statistics.quantiles((scale for patch in compiled for scale in patch.report.scales or ()), n=4)
        rows.append({"network": name, "scales": scales, **row(report, "weights")})
    data = {"edits": len(patches), "engine": runner.name, "machine": machine(), "rows": rows}
    Console().print(table(data))
    command = "python -m benchmarks.knowledge_editor_parts " + " ".join(sys.argv[1:])
    write_section("knowledge_editor_parts", table(data), data, command=command)


def without(network: KnowledgeEditor, parts: Sequence[str]) -> KnowledgeEditor:
    """A copy of the network whose gates do nothing with these parts: their outputs are 0, or (text) another edit's."""
    reduced = copy.deepcopy(network)
    if "text" in parts:
        reduced.encoder.register_forward_hook(lambda module, args, encoded: (encoded[0].roll(-1, 0), encoded[1]))
    with torch.no_grad():
        for gate in reduced.gates:
            assert isinstance(gate, GradientGate)
            widths = [gate.d_out, gate.d_in, gate.d_out, gate.d_in]
            edit = gate.edit.output
            alpha, gamma, b, d = zip(torch.split(edit.weight, widths), torch.split(edit.bias, widths), strict=True)
            own = (gate.token_strength.output.weight, gate.token_strength.output.bias)
            outputs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {
                "strengths": [own],
                "gate": [alpha, gamma],
                "shift": [b, d],
                "text": [],
            }
            for part in parts:
                for weight, bias in outputs[part]:
                    weight.zero_()
                    bias.zero_()
    return reduced


def table(data: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"{data['edits']} single edits of atlas, none of a subject that `methods` edits, asked through "
        f"{data['engine']}. Scale: the multiple of the network's own update at which the edit leads by 3 nats. "
        f"{data['machine']}",
        "",
        f"| network | scale, quartiles | {' | '.join(NAMES)} |",
        "|---|---|" + "---|" * len(NAMES),
    ]
    for item in data["rows"]:
        scales = " / ".join(f"{scale:.2f}" for scale in item["scales"])
        lines.append(f"| {item['network']} | {scales} | {' | '.join(cells(item))} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=60, help="most edits (default 60)")
    parser.add_argument("--seed", type=int, default=5, help="seed of the draw (default 5)")
    parser.add_argument("--network", type=Path, help="folder of a network (default: the shipped one)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
