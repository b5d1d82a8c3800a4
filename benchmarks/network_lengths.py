"""How far MEND or KnowledgeEditor should go: single edits under several margins, of subjects not in `methods`.

    python -m benchmarks.network_lengths [--method mend] [--margins 1,2,3,4] [--count 200] [--seed 5] [--network FOLDER]

The edits are drawn with another seed than those of `benchmarks.methods` and `benchmarks.edit_quality`, and subjects
that these edit are left out: a margin that is chosen here was not chosen on what is reported there.
(`benchmarks.many_edits` and `benchmarks.scoped` edit most subjects that there are, some of these too.)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.arguments import numbers
from benchmarks.common.atlas_edits import Place, single_patches
from benchmarks.common.report_rows import NAMES, SETTINGS, cells, row
from benchmarks.common.results_page import machine, write_section
from vllm_edit.atlas.hypernetworks import NETWORK_FOLDERS
from vllm_edit.cli.output import progress_bar
from vllm_edit.editing.compile import compile_separately
from vllm_edit.editing.network_files import load, network_site
from vllm_edit.evaluation.evaluate import evaluate
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.models.base import Base

JUDGED_COUNT, JUDGED_SEED = 200, 1
"""Of the edits of `methods` and `edit_quality`."""


def main() -> None:
    arguments = _arguments()
    base = Base.load("atlas")
    network, card = load(arguments.network or NETWORK_FOLDERS[arguments.method])
    place = Place(network_site(base, network, card), network)
    runner = HFRunner(base.model, base.tokenizer)
    judged = {patch.edits[0].subject for patch in single_patches(runner, JUDGED_COUNT, JUDGED_SEED)}
    drawn = single_patches(runner, arguments.count, arguments.seed)
    patches = [patch for patch in drawn if patch.edits[0].subject not in judged]
    if len(patches) < 2:
        raise SystemExit(f"{len(patches)} of {len(drawn)} edits are of other subjects: draw more with --count")
    rows = []
    for margin in (None, *arguments.margins):
        settings = {"margin": margin, "on_missed": "report"}
        with progress_bar("own length" if margin is None else f"margin {margin:g}") as progress:
            started = time.perf_counter()
            compiled = compile_separately(
                patches,
                base,
                card.method,
                site=place.site,
                site_tensors=place.site_tensors,
                settings=settings,
                progress=progress,
            )
            seconds = (time.perf_counter() - started) / len(patches)
            report = evaluate(compiled, runner, ("base", "weights"), SETTINGS, progress)
        scales = sorted(scale for patch in compiled for scale in patch.report.scales or ())
        quartiles = statistics.quantiles(scales, n=4)
        rows.append({"margin": margin, "seconds": seconds, "scales": quartiles, **row(report, "weights")})
    data = {"edits": len(patches), "engine": runner.name, "machine": machine(), "rows": rows}
    Console().print(table(data))
    command = "python -m benchmarks.network_lengths " + " ".join(sys.argv[1:])
    write_section(f"{card.method}_lengths", table(data), data, command=command)


def table(data: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"{data['edits']} single edits of atlas, none of a subject that `methods` edits, asked through "
        f"{data['engine']}. Margin: least lead in nats after the edit's prompt, plain and as a chat turn, at which the "
        "network's update ends. Scale: the multiple of the network's own update that this takes. Seconds: all edits in "
        f"one batch. {data['machine']}",
        "",
        f"| margin | scale, quartiles | {' | '.join(NAMES)} | seconds an edit |",
        "|---|---|" + "---|" * (len(NAMES) + 1),
    ]
    for item in data["rows"]:
        margin = "own length" if item["margin"] is None else f"{item['margin']:g}"
        scales = " / ".join(f"{scale:.2f}" for scale in item["scales"])
        lines.append(f"| {margin} | {scales} | {' | '.join(cells(item))} | {item['seconds']:.3f} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--method", choices=sorted(NETWORK_FOLDERS), default="mend", help="method of the network")
    parser.add_argument("--margins", type=numbers(float), default=[1, 2, 3, 4], help="in nats (default 1,2,3,4)")
    parser.add_argument("--count", type=int, default=200, help="edits drawn (default 200)")
    parser.add_argument("--seed", type=int, default=5, help="seed of the draw (default 5)")
    parser.add_argument("--network", type=Path, help="folder of a network (default: the method's shipped one)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
