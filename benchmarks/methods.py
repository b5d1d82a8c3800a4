"""Every method on the same single edits of atlas, in a table: base, ROME, MEND, KE, UltraEdit, fine-tuning, LoRA, IKE.

    python -m benchmarks.methods [--count 200] [--seed 1] [--store runs/bench] [--network FOLDER] [--engine hf]
                                 [--only ROW …] [--no-times]

The edits and the store are those of `benchmarks.edit_quality`. MEND and KnowledgeEditor edit the matrices of their
networks, the shipped ones unless another is named; without one for these weights a row is left out. MEMIT and
AlphaEdit edit the site's layer and the two below it. UltraEdit has statistics of the sweep's edits. An edit that a
method misses stays in the table, as the miss that it is. `--only` measures some rows and takes the others from
the results.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.atlas_edits import Place, open_places, over_layers_of, single_patches
from benchmarks.common.caching_runner import CachingRunner
from benchmarks.common.report_rows import COLUMNS, NAMES, SETTINGS, cells, row
from benchmarks.common.results_page import FOLDER, machine, write_marked, write_section
from benchmarks.common.variants import VARIANTS, Variant
from vllm_edit import atlas
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.cli.output import progress_bar
from vllm_edit.deltas import peft
from vllm_edit.editing.compile import METHODS, compile_patch, compile_separately
from vllm_edit.evaluation.evaluate import evaluate
from vllm_edit.evaluation.report import Mode, Report
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Runner
from vllm_edit.evaluation.runners.vllm import VLLMRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch, Scope

SHOWN = {
    "reliability": "reliability",
    "paraphrase trained": "paraphrase, trained forms",
    "paraphrase held_out": "… held-out forms",
    "reverse": "reverse",
    "portability alias": "portability, alias",
    "portability one_hop": "… one hop",
    "locality": "locality, same relation",
    "locality same_object": "… same old answer",
    "locality_subject": "… same subject",
    "unrelated": "… unrelated",
}
"""Column of `measured` → its heading in the README's table."""
RESULTS = FOLDER / "results" / "methods.json"
PAGES = {"README.md": "benchmarks/RESULTS.md", "docs/methods.md": "../benchmarks/RESULTS.md"}
"""Page with the table → its link to all numbers."""


@dataclass(frozen=True)
class Compiled:
    """All edits by one method. batched: compiled in one batch, not one after the other."""

    edits: list[CompiledPatch]
    seconds: float
    batched: bool

    @property
    def missed(self) -> int:
        """Edits whose target does not lead by the method's margin after the edit's prompt."""
        return sum(bool(edit.report.missed) for edit in self.edits)

    @property
    def bytes(self) -> float:
        """Mean size of an adapter's two files in float32; the units of a scoped edit have one each."""
        deltas = [[unit.delta for unit in edit.units or (edit,)] for edit in self.edits]
        return statistics.fmean(
            sum(sum(map(len, peft.encode(delta.parts, "atlas", torch.float32).values())) for delta in own)
            for own in deltas
        )


@dataclass(frozen=True)
class Entry:
    """A row of the table: a method, and the scope of its patches."""

    variant: Variant
    scope: Scope = "all"

    def compiled(self, patches: Sequence[Patch], place: Place, base: Base, title: str) -> Compiled:
        """Every patch by the method at its place, missed edits reported and kept."""
        started, settings = time.perf_counter(), {**self.variant.settings, "on_missed": "report"}
        method = self.variant.method
        site, tensors = place.site, place.site_tensors
        with progress_bar(title) as progress:
            if self.scope == "all":
                edits = compile_separately(
                    patches,
                    base,
                    self.variant.method,
                    site=site,
                    site_tensors=tensors,
                    settings=settings,
                    progress=progress,
                )
            else:
                edits = list[CompiledPatch]()
                for patch in patches:
                    scoped = patch.model_copy(update={"scope": self.scope})
                    edits.append(
                        compile_patch(scoped, base, method, site=site, site_tensors=tensors, settings=settings)
                    )
                    progress("compiling", len(edits), len(patches))
        batched = self.scope == "all" and METHODS[self.variant.method].compile_each is not None
        return Compiled(edits, time.perf_counter() - started, batched)


OTHER_SETTINGS: Mapping[str, Variant] = {
    "MEND (own length)": Variant("mend", settings={"margin": None}),
    "KE (own length)": Variant("ke", settings={"margin": None}),
    "UltraEdit (one length)": Variant("ultraedit", settings={"margin": None, "centred": True}),
}
ENTRIES: Mapping[str, Entry] = {
    **{name: Entry(variant) for name, variant in (*VARIANTS.items(), *OTHER_SETTINGS.items())},
    **{f"{name}, scope subject": Entry(variant, "subject") for name, variant in VARIANTS.items()},
}
"""Row of the table → its method."""
LEFT_OUT = tuple(name for name, entry in ENTRIES.items() if entry.scope == "subject" and entry.variant.method != "rome")
"""Rows that RESULTS.md has and the pages do not: with scope subject all methods keep other subjects' answers."""


@dataclass(frozen=True)
class Costs:
    """What an edit costs: seconds to compile, bytes of its adapter, its rank, prompt tokens added to an answer."""

    seconds: float | None = None
    batched: bool = False
    bytes: float | None = None
    rank: float | None = None
    tokens: float = 0.0
    missed: int | None = None


def main() -> None:
    arguments = _arguments()
    console = Console()
    base = Base.load("atlas")
    places = open_places(arguments.store, arguments.network, base, console)
    asker = HFRunner(base.model, base.tokenizer)
    patches = single_patches(asker, arguments.count, arguments.seed)
    compiled: dict[str, Compiled] = {}
    used: list[Place] = []
    for name, entry in ENTRIES.items():
        variant = entry.variant
        if variant.method in places and name in (arguments.only or ENTRIES):
            place = places[variant.method]
            if variant.layers > 1:
                place = over_layers_of(place, base, variant.layers, place.site.max_rank)
            compiled[name] = entry.compiled(patches, place, base, name)
            used.append(place)
    rows: dict[str, dict[str, Any]] = {}
    with _runner(arguments.engine, asker, base, used, compiled.values()) as runner:
        for name, patch in compiled.items():
            with progress_bar(name) as progress:
                report = evaluate(patch.edits, runner, ("base", "weights"), SETTINGS, progress)
            costs = Costs(
                None if arguments.no_times else patch.seconds / len(patch.edits),
                patch.batched,
                patch.bytes,
                statistics.fmean(edit.manifest.rank for edit in patch.edits),
                _tokens(report, "weights"),
                patch.missed,
            )
            rows.setdefault("base", row(report, "base") | {"costs": asdict(Costs())})
            rows[name] = row(report, "weights") | {"costs": asdict(costs)}
        if not arguments.only:
            rows["IKE"] = _in_prompts(compiled["ROME"].edits, base, runner)
        engine = runner.name
    data = {"edits": len(patches), "engine": engine, "machine": machine(), "rows": rows}
    if arguments.no_times and RESULTS.exists():
        data = with_seconds(json.loads(RESULTS.read_text()), data)
    if arguments.only:
        data = joined(json.loads(RESULTS.read_text()), data)
    console.print(details(data))
    command = "python -m benchmarks.methods " + ("" if arguments.only else shlex.join(sys.argv[1:]))
    write_section("methods", details(data), data, command=command)
    if not arguments.keep_pages:
        for page, link in PAGES.items():
            write_marked(FOLDER.parent / page, "methods", table(data, link))


def with_seconds(earlier: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with the seconds of an earlier run, for a run beside other programs."""
    rows = {name: {**found, "costs": dict(found["costs"])} for name, found in data["rows"].items()}
    kept = [name for name in rows if name in earlier["rows"] and earlier["rows"][name]["costs"]["seconds"] is not None]
    for name in kept:
        rows[name]["costs"]["seconds"] = earlier["rows"][name]["costs"]["seconds"]
    return {**data, "rows": rows, "timed_before": kept}


def joined(earlier: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The earlier results with the rows of `data` in place of their own; both are of the same edits and engine.

    The base answers are measured again and must be equal.
    """
    ours = {name: data[name] for name in ("edits", "engine")} | {"base": data["rows"]["base"]}
    theirs = {name: earlier[name] for name in ("edits", "engine")} | {"base": earlier["rows"]["base"]}
    if ours != theirs:
        raise SystemExit(
            f"{RESULTS} is of other edits, another engine or another base: measure all rows, without --only"
        )
    rows = {**earlier["rows"], **data["rows"]}
    alone = {*earlier.get("alone", ()), *data["rows"]} - {"base"}
    before = {*earlier.get("timed_before", ())} - {*data["rows"]} | {*data.get("timed_before", ())}
    ordered = [name for name in ("base", *ENTRIES, "IKE") if name in rows]
    return {
        **earlier,
        "rows": {name: rows[name] for name in ordered},
        "alone": [name for name in ordered if name in alone],
        "timed_before": [name for name in ordered if name in before],
    }


def _in_prompts(edits: Sequence[CompiledPatch], base: Base, runner: Runner) -> dict[str, Any]:
    """The row of IKE."""
    bank = Bank.from_records(atlas.bank())
    started = time.perf_counter()
    demonstrated = [with_demonstrations(edit, bank, base.tokenizer) for edit in edits]
    seconds = (time.perf_counter() - started) / len(demonstrated)
    with progress_bar("IKE") as progress:
        report = evaluate(demonstrated, runner, ("ike",), SETTINGS, progress)
    return row(report, "ike") | {"costs": asdict(Costs(seconds, tokens=_tokens(report, "ike")))}


def table(data: Mapping[str, Any], link: str) -> str:
    """The table of the README and of docs/methods.md: shares, then what an edit costs."""
    heads = [*SHOWN.values(), "seconds an edit", "adapter bytes", "prompt tokens"]
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name in (name for name in data["rows"] if name not in LEFT_OUT):
        measures = data["rows"][name]
        costs = measures["costs"]
        shown = cells(measures, SHOWN)
        shown += ["–" if costs["seconds"] is None else f"{costs['seconds']:.3f}"]
        shown += ["–" if costs["bytes"] is None else f"{costs['bytes']:,.0f}", f"{costs['tokens']:.0f}"]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    asked = [str(data["rows"]["base"][column]["n"]) if column in data["rows"]["base"] else "–" for column in SHOWN]
    lines.append(f"| questions | {' | '.join(asked)} | – | – | – |")
    note = (
        f"{data['edits']} counterfactual edits of atlas, each alone, asked through {data['engine']}. Shares by free "
        "greedy generation; locality: answers unchanged from base, where neighbours with the same old answer "
        "(CounterFact's choice) have a column of their own; `vllm-edit eval` counts both kinds as locality. Seconds: "
        f"{_batched(data['rows'])}. Bytes: the PEFT files in float32. `make bench-methods`; intervals and all columns "
        f"in [RESULTS.md]({link})."
    )
    return "\n".join([*lines, "", note])


def details(data: Mapping[str, Any]) -> str:
    """The section of RESULTS.md: every column with its interval."""
    lines = [
        f"{data['edits']} edits, each alone, asked through {data['engine']}. {data['machine']}",
        "Shares with 95 % intervals (Wilson, an edit is one observation). Locality: the answer is what base says.",
        "",
        f"| | {' | '.join(NAMES)} | seconds an edit | rank | bytes | tokens | missed |",
        "|---|" + "---|" * (len(COLUMNS) + 5),
    ]
    for name, measures in data["rows"].items():
        costs = measures["costs"]
        shown = [_with_interval(measures[column]) if column in measures else "–" for column in NAMES]
        shown += ["–" if costs["seconds"] is None else f"{costs['seconds']:.3f}"]
        shown += ["–" if costs[key] is None else f"{costs[key]:,.{places}f}" for key, places in _PLACES.items()]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    lines += [
        "",
        f"Missed: edits whose target does not lead by the method's margin. Seconds: {_batched(data['rows'])}.",
    ]
    if before := data.get("timed_before"):
        lines.append(f"Seconds of an earlier run, without other programs: {'; '.join(before)}.")
    if alone := data.get("alone"):
        lines.append(
            f"Measured apart from the other rows, with the same answers of base (`--only`): {', '.join(alone)}."
        )
    return "\n".join(lines)


_PLACES = {"rank": 1, "bytes": 0, "tokens": 0, "missed": 0}


def _with_interval(measure: Mapping[str, float]) -> str:
    return f"{measure['share']:.3f} [{measure['low']:.2f}, {measure['high']:.2f}]"


def _batched(rows: Mapping[str, Any]) -> str:
    """Which methods were timed in one batch, and which one edit at a time."""
    timed = [name for name in rows if rows[name]["costs"]["seconds"] is not None]
    together = [name for name in timed if rows[name]["costs"]["batched"]]
    alone = [name for name in timed if name not in together]
    return f"in one batch for {'; '.join(together)}; one edit after the other for {'; '.join(alone)}"


def _tokens(report: Report, mode: Mode) -> float:
    return next(cost.tokens_added for cost in report.costs if cost.mode == mode)


@contextmanager
def _runner(
    engine: str, asker: HFRunner, base: Base, places: Iterable[Place], compiled: Iterable[Compiled]
) -> Iterator[Runner]:
    """What asks: the model in this process, or vLLM with LoRA around every site's modules."""
    if engine == "hf":
        yield CachingRunner(asker)
        return
    modules = sorted({module for place in places for module in place.site.modules})
    rank = max(edit.manifest.rank for patch in compiled for edit in patch.edits)
    with VLLMRunner(str(base.folder), modules, rank, max_model_len=512) as runner:
        yield CachingRunner(runner)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200, help="single edits (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default 1)")
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="store to use or make")
    parser.add_argument("--network", type=Path, help="folder of a network, in place of the shipped one of its method")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf", help="what answers (default hf)")
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), help="measure these rows only")
    parser.add_argument(
        "--no-times", action="store_true", help="keep the seconds of an earlier run: other programs are running"
    )
    parser.add_argument("--keep-pages", action="store_true", help="write RESULTS.md only, not the README and the docs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
