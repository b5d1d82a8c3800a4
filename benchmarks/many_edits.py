"""Many edits of atlas at once: summed, solved jointly, over several layers, scoped to subjects, by other methods.

    python -m benchmarks.many_edits [--sizes 1,10,100,300,1000] [--asked 100] [--store runs/bench] [--network FOLDER]
        [--ways joint,MEMIT,…] [--section many_edits] [--add]

A thousand edits are of some six hundred subjects, one or two facts each. Every edit is asked by its own prompt; the
probes of at most `--asked` of them, drawn with a seed, are asked too.

sum        the single subjects' adapters, added: what stacking would serve
joint      all edits solved together, as `vllm-edit compose` does, in one adapter of that rank
MEMIT      all edits compiled together over the site's layer and the two below it
EMMET      the same at the site's layer alone
AlphaEdit  as MEMIT, in the null space of the second moments
UltraEdit  all edits solved together, over the down projections of the last layers
FT-M, LoRA trained on all edits together at the site's module; `FT-M limited` with a norm limit
scoped     each prompt gets the edits of the subjects that it mentions (`scope: subject`)
MEND, KE   the single subjects' deltas, added
IKE        each prompt is preceded by the mentioned facts and demonstrations; no weights are touched

`--add` keeps the rows that the section has of other ways and sizes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.arguments import numbers
from benchmarks.common.atlas_edits import (
    FactName,
    Place,
    facts_by_prompt,
    known_subjects,
    open_places,
    over_layers_of,
)
from benchmarks.common.caching_runner import CachingRunner
from benchmarks.common.report_rows import NAMES, SETTINGS, cells, row
from benchmarks.common.results_page import FOLDER, commit, machine, write_section
from benchmarks.common.variants import VARIANTS
from vllm_edit import atlas
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.site import LEGAL_RANKS
from vllm_edit.atlas.training_documents import held_out_texts
from vllm_edit.cli.output import progress_bar
from vllm_edit.composition.compose import compose
from vllm_edit.composition.scoped import assemble
from vllm_edit.deltas.delta import Delta
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.compile import BATCH, compile_patch, compile_separately, method_of, settings_of
from vllm_edit.errors import EditError
from vllm_edit.evaluation.evaluate import evaluate
from vllm_edit.evaluation.report import Mode
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch, Scope

DOCUMENTS_SEED = 2
"""Neither training's nor that of the documents that C is measured on."""
TOGETHER = {way: VARIANTS[way] for way in ("MEMIT", "EMMET", "AlphaEdit", "UltraEdit", "FT-M", "FT-M limited", "LoRA")}
"""Way → the method that compiles all edits in one patch."""
ADDED = {way: VARIANTS[way].method for way in ("MEND", "KE")}
"""Way → the method whose single subjects' deltas are added."""
WAYS = ("sum", "joint", *TOGETHER, "scoped", *ADDED, "IKE")
OF_UNITS = {"sum", "joint", "IKE"}
"""Ways that are made of r-ROME's patches of single subjects."""
PLOTTED = ("reliability", "paraphrase trained", "locality", "locality_subject", "unrelated", "drift")


@dataclass(frozen=True)
class Many:
    """The same n edits by one way of having them all.

    compiling: seconds, where all edits are compiled together. missed: edits that exceed a limit then.
    """

    way: str
    patch: CompiledPatch
    mode: Mode
    compiling: float | None = None
    missed: int | None = None


def main() -> None:
    arguments = _arguments()
    console = Console()
    base = Base.load("atlas")
    runner = CachingRunner(HFRunner(base.model, base.tokenizer))
    places = open_places(arguments.store, arguments.network, base, console)
    sizes = arguments.sizes
    subjects = known_subjects(runner, max(sizes), arguments.seed)
    wanted = {size: first_edits(subjects, size) for size in sizes}
    chosen = arguments.ways
    compiled: dict[str, dict[str, CompiledPatch]] = {}
    if OF_UNITS & set(chosen):
        compiled["rome"] = compiled_units("rome", places["rome"], base, wanted.values())
    for method in (method for way, method in ADDED.items() if way in chosen and method in places):
        compiled[method] = compiled_units(method, places[method], base, wanted.values())
    if "scoped" in chosen:
        compiled["scoped"] = compiled_units("rome", places["rome"], base, wanted.values(), "subject")
    together: dict[str, Place] = {}
    for way, variant in ((way, variant) for way, variant in TOGETHER.items() if way in chosen):
        place = places[variant.method]
        if way == "UltraEdit":
            together[way] = replace(place, site=place.site.model_copy(update={"max_rank": LEGAL_RANKS[-1]}))
        else:
            together[way] = over_layers_of(place, base, variant.layers, max(sizes))
    documents = held_out_texts(arguments.documents, DOCUMENTS_SEED)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        units: dict[str, list[CompiledPatch]] = {
            method: [made[patch.name] for patch in wanted[size]] for method, made in compiled.items()
        }
        patches = wanted[size]
        for many in ways(patches, units, together, base, arguments.asked, arguments.seed, chosen):
            started = time.perf_counter()
            with progress_bar(f"{many.way}, {size}") as progress:
                report = evaluate(many.patch, runner, ("base", many.mode), SETTINGS, progress, passages=documents)
            row_of = row(report, many.mode) | {"drift": None if report.drift is None else report.drift.value}
            costs = {"asking": time.perf_counter() - started, "compiling": many.compiling, "missed": many.missed}
            rows.append({"way": many.way, "edits": size, "commit": commit(), **costs, **row_of})
            console.print(_line(rows[-1]))
    data = {
        "documents": arguments.documents,
        "rows": rows,
        "machine": machine(),
        "engine": runner.name,
        "asked": arguments.asked,
    }
    if arguments.add:
        data = with_earlier(json.loads((FOLDER / "results" / f"{arguments.section}.json").read_text()), data)
    plot(data["rows"], FOLDER / "results" / f"{arguments.section}.svg")
    command = "python -m benchmarks.many_edits " + " ".join(sys.argv[1:])
    write_section(arguments.section, table(data, arguments.section), data, command=command)


def with_earlier(earlier: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with the earlier rows of other ways and sizes, by size and then in the order of `WAYS`.

    Raises:
        EditError: the earlier rows were asked otherwise.
    """
    if different := [name for name in ("documents", "engine", "asked") if earlier[name] != data[name]]:
        raise EditError(f"the section's rows were measured with other {', '.join(different)}: leave --add out")
    rows = {(item["edits"], item["way"]): item for item in (*earlier["rows"], *data["rows"])}
    order = sorted(rows, key=lambda key: (key[0], WAYS.index(key[1])))
    return {**data, "rows": [rows[key] for key in order]}


def first_edits(subjects: Sequence[Patch], count: int) -> list[Patch]:
    """The first subjects with exactly `count` edits together; of the last one only as many as are needed.

    Raises:
        EditError: there are not so many.
    """
    found: list[Patch] = []
    left = count
    for patch in subjects:
        if left == 0:
            return found
        if len(patch.edits) > left:
            patch = Patch(name=f"{patch.name}-{left}", edits=patch.edits[:left])
        found.append(patch)
        left -= len(patch.edits)
    if left:
        raise EditError(f"asked for {count} edits, these subjects give {count - left}")
    return found


def compiled_units(
    method: str, place: Place, base: Base, wanted: Iterable[Sequence[Patch]], scope: Scope = "all"
) -> dict[str, CompiledPatch]:
    """Name → each wanted subject's edits as they would be alone in a patch of that scope; missed ones are kept."""
    units: dict[str, CompiledPatch] = {}
    with progress_bar(method) as progress:
        for patches in sorted(wanted, key=len, reverse=True):  # all subjects first, then what is cut of the last ones
            new = [patch for patch in patches if patch.name not in units]
            for start in range(0, len(new), BATCH):
                progress("compiling subjects", start, len(new))
                batch = new[start : start + BATCH]
                settings = settings_of(method_of(method), {"on_missed": "report"}, scope)
                made = compile_separately(
                    batch, base, method, site=place.site, site_tensors=place.site_tensors, settings=settings
                )
                units |= zip((patch.name for patch in batch), made, strict=True)
    return units


def ways(
    patches: Sequence[Patch],
    units: Mapping[str, Sequence[CompiledPatch]],
    together: Mapping[str, Place],
    base: Base,
    asked: int,
    seed: int,
    chosen: Sequence[str],
) -> Iterator[Many]:
    """Every chosen way of having the edits of all patches. units: method → the patches, compiled apart."""
    edits = tuple(edit for patch in patches for edit in patch.edits)
    size = len(edits)
    joint = compose(list(units["rome"]), f"joint-{size}") if "rome" in units else None
    if joint is not None and "sum" in chosen:
        summed = Delta.concatenate([unit.delta for unit in units["rome"]])
        yield Many("sum", sampled(_with_delta(joint, summed), asked, seed), "weights")
    if joint is not None and "joint" in chosen:
        yield Many("joint", sampled(joint, asked, seed), "weights")
    for way, place in together.items():
        patch = Patch(name=f"{way.lower().replace(' ', '-')}-{size}", edits=edits)
        started = time.perf_counter()
        compiled = compiled_together(way, patch, place, base)
        seconds, missed = time.perf_counter() - started, len(compiled.report.missed)
        yield Many(way, sampled(compiled, asked, seed), "weights", seconds, missed)
    if "scoped" in units:
        apart = list(units["scoped"])
        yield Many(
            "scoped",
            sampled(assemble(Patch(name=f"scoped-{size}", scope="subject", edits=edits), apart), asked, seed),
            "weights",
        )
    for way, method in ADDED.items():
        if method in units:
            added = compose(list(units[method]), f"{method}-{size}")
            yield Many(way, sampled(added, asked, seed), "weights")
    if joint is not None and "IKE" in chosen:
        demonstrated = with_demonstrations(sampled(joint, asked, seed), Bank.from_records(atlas.bank()), base.tokenizer)
        yield Many("IKE", demonstrated, "ike")


def compiled_together(way: str, patch: Patch, place: Place, base: Base) -> CompiledPatch:
    """All edits of a patch compiled in one batch; missed ones are kept."""
    with progress_bar(way) as progress:
        return compile_patch(
            patch,
            base,
            TOGETHER[way].method,
            site=place.site,
            site_tensors=place.site_tensors,
            settings={**TOGETHER[way].settings, "on_missed": "report"},
            progress=progress,
        )


def sampled(compiled: CompiledPatch, asked: int, seed: int) -> CompiledPatch:
    """The same patch with the probes of at most `asked` of its edits; the others are asked by their own prompt only.

    A keeping probe is left out if the patch has a `tune` probe about the same fact, in whatever words: closed-form
    methods preserve the key of a `tune` probe, so such a question would not judge them.
    """
    edits = without_preserved(compiled.manifest.edits, facts_by_prompt())
    # By prompt: every way has the same edits, each in an order of its own.
    kept = set(random.Random(seed).sample(sorted(edit.prompt for edit in edits), k=min(asked, len(edits))))
    shown = tuple(e if e.prompt in kept else e.model_copy(update={"probes": ()}) for e in edits)
    return replace(compiled, manifest=compiled.manifest.model_copy(update={"edits": shown}))


def without_preserved(edits: Sequence[Edit], facts: Mapping[str, FactName]) -> tuple[Edit, ...]:
    """The edits without the `gate` keeping probes about a fact that a `tune` keeping probe of any edit asks for."""
    probes = [probe for edit in edits for probe in edit.probes if probe.keeps]
    preserved = {facts.get(probe.prompt) for probe in probes if probe.split == "tune"} - {None}

    def judges(probe: Probe) -> bool:
        return not probe.keeps or probe.split == "tune" or facts.get(probe.prompt) not in preserved

    return tuple(edit.model_copy(update={"probes": tuple(filter(judges, edit.probes))}) for edit in edits)


def table(data: Mapping[str, Any], section: str) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"Asked through {data['engine']}. Every edit by its own prompt, the probes of at most {data['asked']} edits. "
        f"Drift: relative change of the perplexity of {data['documents']} held-out documents; at 1,000 edits nearly "
        "all of them name an edited subject, so it counts intended changes too. Keeping probes are not asked if "
        "another edit changes them, or if they are about a fact that the patch preserves: a column says how "
        f"many locality questions were left. Measured at: the commit of the code. {data['machine']}",
        "",
        f"![many edits](results/{section}.svg)",
        "",
        f"| edits | | {' | '.join(NAMES)} | drift | missed | seconds to compile | locality questions | measured at |",
        "|---|---|" + "---|" * (len(NAMES) + 5),
    ]
    for item in data["rows"]:
        drift = "–" if item["drift"] is None else f"{item['drift']:+.1%}"
        asked = item["locality"]["n"] if "locality" in item else "–"
        missed = "–" if item["missed"] is None else item["missed"]
        seconds = "–" if item["compiling"] is None else f"{item['compiling']:.0f}"
        costs = f"{drift} | {missed} | {seconds} | {asked} | {item['commit']}"
        lines.append(f"| {item['edits']} | {item['way']} | {' | '.join(cells(item))} | {costs} |")
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One panel for each of `PLOTTED`, one line for each way, over the number of edits."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "vllm-edit", "font.size": 8}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        for place, name in enumerate(PLOTTED):
            axes = figure.add_subplot(2, 3, place + 1)
            for number, way in enumerate(dict.fromkeys(item["way"] for item in rows)):
                points = [(item["edits"], _value(item, name)) for item in rows if item["way"] == way]
                known = [(edits, value) for edits, value in points if value is not None]
                axes.plot(
                    [x for x, _ in known],
                    [y for _, y in known],
                    marker=".",
                    label=way,
                    color=f"C{number % 10}",
                    linestyle="-" if number < 10 else "--",
                )
            axes.set_title("perplexity drift" if name == "drift" else name)
            axes.set_xscale("log")
            if name == "drift":
                axes.set_yscale("symlog", linthresh=0.1)  # a destroyed model's is a million
            else:
                axes.set_ylim(-0.03, 1.03)
        figure.axes[0].legend()
        figure.supxlabel("edits at once")
        figure.savefig(path, metadata={"Date": None})


def _value(one: Mapping[str, Any], name: str) -> float | None:
    found = one.get(name)
    return found["share"] if isinstance(found, Mapping) else found


def _with_delta(compiled: CompiledPatch, delta: Delta) -> CompiledPatch:
    manifest = compiled.manifest.model_copy(update={"patch": "sum", "adapter": delta.digest})
    return replace(compiled, manifest=manifest, delta=delta)


def _line(one: Mapping[str, Any]) -> str:
    shown = [f"{name} {value:.3f}" for name in PLOTTED if (value := _value(one, name)) is not None]
    return f"{one['edits']} edits, {one['way']}: {', '.join(shown)} ({one['asking']:.0f} s)"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sizes", type=numbers(int), default=[1, 10, 100, 300, 1000], help="numbers of edits at once")
    parser.add_argument("--asked", type=int, default=100, help="edits whose probes are asked (default 100)")
    parser.add_argument("--documents", type=int, default=60, help="held-out documents for perplexity (default 60)")
    parser.add_argument("--ways", type=chosen_ways, default=WAYS, help=f"default: {','.join(WAYS)}")
    parser.add_argument("--section", default="many_edits", help="section of RESULTS.md (default many_edits)")
    parser.add_argument("--add", action="store_true", help="keep the section's rows of other ways and sizes")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default 1)")
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="store to use or make")
    parser.add_argument("--network", type=Path, help="folder of a network, in place of the shipped one of its method")
    return parser.parse_args()


def chosen_ways(text: str) -> tuple[str, ...]:
    """The ways in a list with commas.

    Raises:
        ArgumentTypeError: there is no such way.
    """
    chosen = tuple(text.split(","))
    if unknown := [way for way in chosen if way not in WAYS]:
        raise argparse.ArgumentTypeError(f"expected ways among {', '.join(WAYS)}, got {unknown[0]!r}")
    return chosen


if __name__ == "__main__":
    main()
