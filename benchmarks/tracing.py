"""Where atlas recalls its facts (causal tracing), and whether that is where the sweep edits.

    python -m benchmarks.tracing [--count 40] [--seed 1] [--samples 10] [--store runs/bench]

The prompts are the ten of patches/world.yaml and edits drawn over all relations, as in benchmarks.edit_quality, from
facts that the base answers rightly. The result goes into RESULTS.md, and with its picture into docs/tracing.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.common.atlas_edits import known_edits, open_store
from benchmarks.common.results_page import machine, write_marked, write_section
from vllm_edit.artefacts.site import Site
from vllm_edit.edit import Edit
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.tracing.corruption import KINDS
from vllm_edit.tracing.effects import KIND_LABELS, ROLES, AverageEffects
from vllm_edit.tracing.effects_table import effects_table, shown, verdicts
from vllm_edit.tracing.heat_map import draw_heat_map
from vllm_edit.tracing.trace import TraceSettings, trace

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "tracing.md", ROOT / "docs" / "images" / "tracing.svg"


def main() -> None:
    arguments = _arguments()
    console = Console()
    base = Base.load("atlas")
    site = open_store(arguments.store, base, console).site()
    drawn = known_edits(HFRunner(base.model, base.tokenizer), arguments.count, arguments.seed)
    edits = [*Patch.load(ROOT / "patches" / "world.yaml").edits, *drawn]
    started = time.perf_counter()
    windowed = _averages(base, edits, TraceSettings(samples=arguments.samples), console)
    seconds = time.perf_counter() - started
    single = _averages(base, edits, TraceSettings(samples=arguments.samples, window=1), console)
    console.print(effects_table(windowed))
    text = _markdown(windowed, single, site, seconds)
    PICTURE.parent.mkdir(exist_ok=True)
    draw_heat_map(windowed, PICTURE)
    write_marked(PAGE, "trace", f"![Average indirect effects](images/{PICTURE.name})\n\n{text}")
    data = {f"window {found.trace.window}": _record(found) for found in (windowed, single)}
    data |= {"site": {"module": site.module, "layer": site.layer, "token": site.token}}
    write_section("tracing", text, data, command="python -m benchmarks.tracing " + " ".join(sys.argv[1:]))


def _averages(base: Base, edits: Sequence[Edit], settings: TraceSettings, console: Console) -> AverageEffects:
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("tracing", total=len(edits))
        found = trace(base, edits, settings, lambda _, done, total: bar.update(task, completed=done, total=total))
    return AverageEffects(found)


def _markdown(found: AverageEffects, single: AverageEffects, site: Site, seconds: float) -> str:
    trace = found.trace
    lines = [
        f"{len(trace.prompts)} prompts of atlas, {trace.settings.samples} noise samples each, windows of "
        f"{trace.window} of {trace.depth} layers, {seconds / len(trace.prompts):.1f} s a prompt. {machine()}",
        "",
        f"Probability of the model's own answer: clean {shown(found.clean)}, corrupted {shown(found.corrupted)}; total "
        f"effect {shown(found.total)}.",
        "",
        "Strongest average indirect effect of each token role, with its 95 % interval and its layer:",
        "",
        "| token | " + " | ".join(KIND_LABELS[kind] for kind in KINDS) + " |",
        "|---|" + "---|" * len(KINDS),
    ]
    peaks = [{peak.role: peak for peak in found.peaks(kind)} for kind in KINDS]
    for role, label in ROLES.items():
        if role in peaks[0]:
            cells = (f"{shown(own[role].mean)} at {own[role].layer}" for own in peaks)
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {line}" for line in verdicts(found))]
    one_layer = ", ".join(
        f"the {ROLES[peak.role]} {shown(peak.mean)} at {peak.layer}"
        for peak in single.peaks("mlp")
        if peak.role in ("last_subject", "last")
    )
    lines.append(f"- one MLP at a time (window 1): {one_layer}")
    suggested = found.suggested_site()
    agrees = "the sweep agrees" if suggested == (site.layer, site.token) else "the sweep does not agree"
    lines.append(f"- {agrees}: it edits layer {site.layer}, token {site.token}")
    return "\n".join(lines)


def _record(found: AverageEffects) -> dict[str, Any]:
    """The averages; of single prompts only what is no matrix."""
    record: dict[str, Any] = found.as_record()
    heads = ("subject", "prompt", "answer", "believed", "clean", "corrupted")
    return record | {"prompts": [{key: prompt[key] for key in heads} for prompt in record["prompts"]]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=40, help="drawn edits beside the ten of world.yaml (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default 1)")
    parser.add_argument("--samples", type=int, default=10, help="noise samples for each prompt (default 10)")
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="store whose site is compared")
    return parser.parse_args()


if __name__ == "__main__":
    main()
