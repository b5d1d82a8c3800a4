"""How well atlas can be edited: 200 counterfactual single edits through vLLM, and 10, 50 and 100 of them at once.

    python -m benchmarks.edit_quality [--count 200] [--seed 1] [--store runs/bench] [--method rome]

The edits are drawn over all relations from facts that the base answers rightly; none of their subjects is among
those that chose the site or λ (`vllm_edit.facts.counterfactual_edits`). With another method than r-ROME, the edits are
compiled over the site's layer and the two below it, and only single edits are asked. The result goes into RESULTS.md
with machine and command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.atlas_edits import Place, open_store, over_layers_of, single_patches
from benchmarks.common.report_rows import COLUMNS, NAMES, SETTINGS, cells, row, selected
from benchmarks.common.results_page import machine, write_section
from vllm_edit import atlas
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.cli.output import progress_bar
from vllm_edit.composition.compose import compose
from vllm_edit.composition.solver import System, as_saved, plain_sum
from vllm_edit.deltas.delta import Delta
from vllm_edit.editing.compile import compile_separately
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.evaluation.evaluate import evaluate
from vllm_edit.evaluation.report import Report
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.vllm import VLLMRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.models.base import Base

TOGETHER = (10, 50, 100)
LAYERS = 3
"""Number of layers for other methods than r-ROME."""


def main() -> None:
    arguments = _arguments()
    console = Console()
    base = Base.load("atlas")
    store = open_store(arguments.store, base, console)
    method, moment = arguments.method, SecondMoment.from_tensors(store.moment())
    place = Place(store.site(), moment)
    if method != "rome":
        place = over_layers_of(place, base, LAYERS, store.site().max_rank)
    site = place.site
    runner = HFRunner(base.model, base.tokenizer)
    patches = single_patches(runner, arguments.count, arguments.seed)
    started = time.perf_counter()
    with progress_bar("compiling") as progress:
        singles = compile_separately(
            patches,
            base,
            method,
            site=site,
            site_tensors=place.site_tensors,
            settings={"on_missed": "report"},
            progress=progress,
        )
    seconds = time.perf_counter() - started
    console.print(f"{len(singles)} edits compiled in {seconds:.1f} s, {seconds / len(singles):.2f} s an edit")
    bank = Bank.from_records(atlas.bank())
    compiled = [with_demonstrations(single, bank, base.tokenizer) for single in singles]

    rows: dict[str, dict[str, Any]] = {}
    together = {}
    for count in TOGETHER if method == "rome" else ():
        if count <= len(singles):
            joint = compose(singles[:count])
            summed = _with_delta(joint, f"sum-{count}", _sum_of(singles[:count], site.module, site.damping))
            for name, composed in ((f"{count} joint", joint), (f"{count} sum", summed)):
                report = evaluate(composed, runner, ("base", "weights"), SETTINGS)
                rows[name] = row(report, "weights")
                together[name] = report
    assert base.folder is not None
    runner_of = VLLMRunner(base.folder, site.modules, site.max_rank, slots=site.slots, max_model_len=512)
    with runner_of as engine, progress_bar("asking") as progress:
        report = evaluate(compiled, engine, ("base", "weights", "ike"), SETTINGS, progress)
    for mode in report.modes:
        rows[f"single, {mode}"] = row(report, mode)
    text = _markdown(rows, report, compiled, site, seconds)
    console.print(text)
    data = {"rows": rows, "by_relation": _by_relation(report), "misses": _misses(report)}
    section = "edit_quality" if method == "rome" else f"edit_quality_{method}"
    write_section(section, text, data, command="python -m benchmarks.edit_quality " + " ".join(sys.argv[1:]))


def _sum_of(singles: Sequence[CompiledPatch], module: str, damping: float) -> Delta:
    """The plain sum of single edits: what stacking adapters would serve."""
    import torch

    factors = [single.factors for single in singles if single.factors is not None]
    groups = [number for number, factor in enumerate(factors) for _ in range(len(factor.keys))]
    shares = [column.share for single in singles for column in single.manifest.columns]
    keys, whitened = torch.cat([factor.keys for factor in factors]), torch.cat([factor.whitened for factor in factors])
    system = System.of(keys, whitened, groups, damping, shares)
    update = plain_sum(system, torch.cat([factor.residuals for factor in factors]))
    return Delta({module: as_saved(update)})


def _with_delta(compiled: CompiledPatch, name: str, delta: Delta) -> CompiledPatch:
    manifest = compiled.manifest.model_copy(update={"patch": name, "adapter": delta.digest})
    return replace(compiled, manifest=manifest, delta=delta)


def _by_relation(report: Report) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, list[bool]]] = {}
    for name, (metric, tag) in zip(NAMES, COLUMNS, strict=True):
        for answer in selected(report, metric, tag):
            table.setdefault(answer.relation, {}).setdefault(name, []).append(answer.right["weights"])
    return {
        relation: {metric: sum(hits) / len(hits) for metric, hits in found.items()} for relation, found in table.items()
    }


def _misses(report: Report) -> list[dict[str, Any]]:
    """Every changing prompt that was not answered with the target, and every keeping prompt that moved."""
    return [
        {
            "metric": a.metric,
            "prompt": a.prompt,
            "chat": a.chat,
            "expected": a.expected,
            **{str(mode): text for mode, text in a.texts.items()},
        }
        for a in report.answers or ()
        if not a.right["weights"] and a.metric != "reverse"
    ]


def _markdown(
    rows: dict[str, dict[str, Any]], report: Report, compiled: Sequence[CompiledPatch], site: Any, seconds: float
) -> str:
    lines = [
        f"Modules {', '.join(site.modules)}, token `{site.token}`, λ {compiled[0].manifest.damping:g}; "
        "the sweep chose on other subjects.",
        f"{len(compiled)} edits, {seconds / len(compiled):.2f} s an edit. {machine()}",
        "",
        "| edits | " + " | ".join(NAMES) + " |",
        "|---|" + "---|" * len(NAMES),
    ]
    for name, measures in rows.items():
        lines.append(f"| {name} | " + " | ".join(cells(measures)) + " |")
    lines += [
        "",
        "Locality counts an answer that is unchanged from base; `same_object` are neighbours with the same true object",
    ]
    lines[-1] += ", as CounterFact chooses them. Tokens added per prompt: "
    lines[-1] += ", ".join(f"{cost.mode} {cost.tokens_added:.0f}" for cost in report.costs) + "."
    weak = {
        relation: found
        for relation, found in sorted(_by_relation(report).items())
        if found.get("reliability", 1) < 1
        or found.get("paraphrase trained", 1) < 0.85
        or found.get("locality", 1) < 0.9
    }
    if weak:
        lines += ["", "Relations that fall short:", "", "| relation | reliability | paraphrase trained | locality |"]
        lines.append("|---|---|---|---|")
        for relation, found in weak.items():
            shown = (
                f"{found[m]:.2f}" if m in found else "–" for m in ("reliability", "paraphrase trained", "locality")
            )
            lines.append(f"| {relation} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200, help="single edits (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default 1)")
    parser.add_argument("--method", choices=("rome", "memit", "alphaedit"), default="rome", help="default rome")
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="store to use or make")
    return parser.parse_args()


if __name__ == "__main__":
    main()
