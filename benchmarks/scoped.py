"""A thousand edits in one patch with scope subject, through the real server, beside single edits and `scope: all`.

    python -m benchmarks.scoped [--count 1000] [--asked 100] [--seed 1] [--store runs/bench]

Every edit is asked by its own prompt; the probes of at most `--asked` edits, drawn with a seed, are asked too.

single     each edit compiled alone, asked with its own adapter (Hugging Face)
scoped     all edits in one patch, `vllm-edit serve`, the site's slots and rank; the server chooses what answers
few        as many of the edits as the rank allows, once with scope all, once with scope subject, through the server
truncated  all edits solved together and truncated to the site's rank, with scope all, through the server
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import scope_prompts
from benchmarks.common.atlas_edits import Place, known_subjects, open_store
from benchmarks.common.caching_runner import CachingRunner
from benchmarks.common.percentiles import percentile
from benchmarks.common.report_rows import NAMES, SETTINGS, cells, row
from benchmarks.common.results_page import machine, write_section
from benchmarks.common.server_runner import ServerRunner
from benchmarks.many_edits import first_edits, sampled
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.cli.output import progress_bar
from vllm_edit.composition.compose import compose
from vllm_edit.composition.scoped import ScopeIndex, assemble
from vllm_edit.demo.server import LocalServer
from vllm_edit.editing.compile import BATCH, compile_separately
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.evaluation.evaluate import evaluate
from vllm_edit.evaluation.report import Report
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request, Runner
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.models.base import Base
from vllm_edit.models.lengths import READ
from vllm_edit.patch import Patch
from vllm_edit.serving.served_model import served_model
from vllm_edit.store.store import Store

ANSWER = READ
PAIRS = 200
SECONDS = "seconds"
"""Kind of the record that says how long compiling took."""


def main() -> None:
    arguments = _arguments()
    console = Console()
    base = Base.load("atlas")
    local = CachingRunner(HFRunner(base.model, base.tokenizer))
    store = open_store(arguments.store, base, console)
    place = Place(store.site(), SecondMoment.from_tensors(store.moment()))
    subjects = first_edits(known_subjects(local, arguments.count, arguments.seed), arguments.count)
    units, seconds = compiled_once(subjects, place, base, store)
    patches = patches_of(units, store)
    for patch in patches.values():
        store.save(patch)
    store.add_record(patches["scoped"].name, SECONDS, {"seconds": seconds})
    console.print(f"{arguments.count} edits of {len(units)} subjects compiled in {seconds:.0f} s")

    index = ScopeIndex.of(patches["scoped"].manifest)
    rows: dict[str, dict[str, Any]] = {}
    with LocalServer(store.url, arguments.store / "scoped.log", patience=900) as server:
        asked = ServerRunner(server.url, served_model(store.site().model)[1], base.tokenizer, local.context)
        remote = CachingRunner(asked)
        for name, patch in patches.items():
            report = _report(name, [_whole(patch)], remote, arguments)
            rows[name] = row(report, "weights")
            if name == "scoped":
                rows["base"] = row(report, "base")
        scope = measured_scope(index, patches["scoped"], units, asked, local, arguments.seed)
        scope["refused"] = len(asked.refused)
    console.print("single edits ...")
    singles = singles_of(subjects, units, place, base)
    rows["single"] = row(_report("single", singles, local, arguments), "weights")
    lost = rows["single"]["reliability"]["share"] - rows["scoped"]["reliability"]["share"]
    data = {
        "edits": arguments.count,
        "subjects": len(units),
        "rank": store.site().max_rank,
        "slots": store.site().slots,
        "seconds_compiling": seconds,
        "kept_energy": algebra.kept_energy if (algebra := patches["truncated"].algebra) else 1.0,
        "few": len(patches["few-all"].manifest.edits),
        "asked": arguments.asked,
        "reliability_lost": lost,
        "bytes": sizes(store, patches["scoped"].name),
        "rows": rows,
        "scope": scope,
        "machine": machine(),
    }
    text = table(data)
    console.print(text)
    write_section("scoped", text, data, command=" ".join(["python -m benchmarks.scoped", *sys.argv[1:]]))


def compiled_once(
    subjects: Sequence[Patch], place: Place, base: Base, store: Store
) -> tuple[Sequence[CompiledPatch], float]:
    """The subjects' units and the seconds that compiling took: from the store, where an earlier run left them there."""
    wanted = tuple(edit for patch in subjects for edit in patch.edits)
    settings = _settings().lasting()
    for name in store.names():
        stored = store.manifest(name) if name.startswith("scoped@") else None
        if stored and stored.edits == wanted and stored.settings == settings and store.records(name, SECONDS):
            return store.load(name).units, _recorded_seconds(store, name)
    started = time.perf_counter()
    return compiled_alone(subjects, place, base), time.perf_counter() - started


def _settings() -> RomeSettings:
    """The defaults of `scope: subject`; an edit that misses is kept."""
    return RomeSettings.of({"on_missed": "report"}, "subject")


def _recorded_seconds(store: Store, name: str) -> float:
    """Seconds that an earlier run took to compile the patch."""
    data: Mapping[str, Any] = store.records(name, SECONDS)[-1].data
    return float(data["seconds"])


def patches_of(units: Sequence[CompiledPatch], store: Store) -> dict[str, CompiledPatch]:
    """What is served: all edits scoped and truncated, and as many as the rank allows in both scopes."""
    site = store.site()
    few: list[CompiledPatch] = []
    for unit in units:
        if sum(item.manifest.rank for item in [*few, unit]) <= site.max_rank:
            few.append(unit)
    return {
        "scoped": assemble(_declared("scoped", units), units),
        "few-scoped": assemble(_declared("few-scoped", few), few),
        "few-all": compose(few, "few-all", site=site),
        "truncated": compose(units, "truncated", site=site, truncate=True),
    }


def _declared(name: str, units: Sequence[CompiledPatch]) -> Patch:
    return Patch(name=name, scope="subject", edits=tuple(edit for unit in units for edit in unit.manifest.edits))


def _whole(patch: CompiledPatch) -> CompiledPatch:
    """The patch as a client names it: what of it answers is the server's to choose."""
    return replace(patch, manifest=patch.manifest.model_copy(update={"scope": "all"}))


def singles_of(
    subjects: Sequence[Patch], units: Sequence[CompiledPatch], place: Place, base: Base
) -> list[CompiledPatch]:
    """Every edit compiled alone; a subject's only edit is its unit."""
    lonely = [unit for unit in units if len(unit.manifest.edits) == 1]
    several = [patch for patch in subjects if len(patch.edits) > 1]
    # Edits of one subject may not be in one batch: first those that come first, then the second ones.
    batches = [
        [Patch(name=f"{p.name}-{n}", edits=(p.edits[n],)) for p in several if n < len(p.edits)]
        for n in range(max((len(p.edits) for p in several), default=0))
    ]
    return [*lonely, *(patch for batch in batches for patch in compiled_alone(batch, place, base))]


def compiled_alone(patches: Sequence[Patch], place: Place, base: Base) -> list[CompiledPatch]:
    """Each patch as it would be alone; missed edits are kept."""
    made: list[CompiledPatch] = []
    with progress_bar("compiling") as progress:
        for start in range(0, len(patches), BATCH):
            progress("patches", start, len(patches))
            made += compile_separately(
                patches[start : start + BATCH],
                base,
                site=place.site,
                site_tensors=place.site_tensors,
                settings=_settings(),
            )
    return made


def _report(name: str, patches: Sequence[CompiledPatch], runner: Runner, arguments: argparse.Namespace) -> Report:
    """The evaluation of patches that are each asked alone, with the probes of at most `--asked` edits in all."""
    share = -(-arguments.asked // len(patches))
    count = min(len(patches), arguments.asked // share)
    whole = set(random.Random(arguments.seed).sample(range(len(patches)), k=count))
    chosen = [sampled(patch, share if number in whole else 0, arguments.seed) for number, patch in enumerate(patches)]
    with progress_bar(name) as progress:
        return evaluate(chosen, runner, ("base", "weights"), SETTINGS, progress)


def measured_scope(
    index: ScopeIndex,
    scoped: CompiledPatch,
    units: Sequence[CompiledPatch],
    asked: ServerRunner,
    local: CachingRunner,
    seed: int,
) -> dict[str, Any]:
    """How well the scope chooses, and what two subjects in one prompt do."""
    edits = scoped.manifest.edits
    owner = {edit: units[number] for number, unit in enumerate(index.units) for edit in unit.edits}
    base_name = asked.base
    arms = scope_prompts.Arms(
        base=lambda prompts: [reply.text for reply in asked.ask([(base_name, p, False) for p in prompts], ANSWER)],
        scoped=lambda prompts: [reply.text for reply in asked.ask([("scoped", p, False) for p in prompts], ANSWER)],
        held=lambda pairs: local.generate([Request(p, False, owner[edit]) for p, edit in pairs], ANSWER),
    )
    facts = Facts.load(tables_folder())
    locality = [probe.prompt for edit in edits[:100] for probe in edit.probes_of("locality", "gate")]
    return {
        "homonyms": scope_prompts.false_activation(index, arms),
        "aliases": scope_prompts.aliases(index, edits),
        "multi_hop": scope_prompts.multi_hop(facts, index, edits, arms, seed),
        "brought_up": scope_prompts.brought_up(index, locality, arms),
        "pairs": _pairs(index, scoped, asked, arms, seed),
    }


def _pairs(
    index: ScopeIndex, scoped: CompiledPatch, asked: ServerRunner, arms: scope_prompts.Arms, seed: int
) -> dict[str, Any]:
    """Prompts that name two edited subjects: answers, and how long the router takes for a pair at first and again."""
    probes = scope_prompts.two_subjects(index, scoped.manifest.edits, PAIRS, seed)
    if not probes:
        return {"prompts": 0}
    prompts = [probe.prompt for probe in probes]
    seconds: dict[str, list[float]] = {"first": [], "again": []}
    answers: list[str] = []
    refused = 0
    for turn, times in seconds.items():
        for prompt in prompts:  # one at a time: the router's own time, not its queue
            (reply,) = asked.ask([("scoped", prompt, False)], ANSWER)
            if reply.refusal:
                refused += turn == "first"
            else:
                times.append(asked.record(reply)["router_seconds"])
            if turn == "first":
                answers.append(reply.text)
    held = arms.held([(probe.prompt, probe.edit) for probe in probes])
    return {
        "prompts": len(probes),
        "both": scope_prompts.share_right(answers, probes),
        "own_only": scope_prompts.share_right(held, probes),
        "base": scope_prompts.share_right(arms.base(prompts), probes),
        "refused": refused,
        **{f"{turn}_ms": {"p50": _at(times, 50), "p99": _at(times, 99)} for turn, times in seconds.items()},
    }


def _at(seconds: Sequence[float], percent: int) -> float | None:
    """A percentile in milliseconds."""
    return 1000 * percentile(seconds, percent) if seconds else None


def sizes(store: Store, name: str) -> dict[str, float]:
    """Bytes of the patch in the store, and of one unit."""
    files = [path for path in (Path(store.url) / "patches" / name).rglob("*") if path.is_file()]
    units = [path.stat().st_size for path in files if path.parent.name == "units"]
    return {"patch": sum(path.stat().st_size for path in files), "unit": statistics.median(units)}


def table(data: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    scope, size = data["scope"], data["bytes"]
    names = {
        "base": "base",
        "single": "single edits",
        "scoped": f"scoped, {data['edits']}",
        "truncated": f"all, {data['edits']} truncated to rank {data['rank']}",
        "few-scoped": f"scoped, {data['few']}",
        "few-all": f"all, {data['few']}",
    }
    lines = [
        f"{data['edits']} edits of {data['subjects']} subjects in one patch with scope subject, through "
        f"`vllm-edit serve` with {data['slots']} slots of rank {data['rank']}. Every edit by its own prompt, the "
        f"probes of at most {data['asked']} edits. Single edits: each compiled alone, asked with its own adapter. "
        "Their probes are drawn apart from the patch's, so only the reliability columns compare the two. "
        f"The truncated solution keeps {data['kept_energy']:.1%} of the energy.",
        f"Reliability lost against single edits: {data['reliability_lost']:+.3f}. Compiled in "
        f"{data['seconds_compiling']:.0f} s; {size['patch'] / 2**20:.1f} MiB in the store, "
        f"{size['unit'] / 2**10:.0f} KiB a subject. {data['machine']}",
        "",
        f"| | {' | '.join(NAMES)} |",
        "|---|" + "---|" * len(NAMES),
    ]
    for key, label in names.items():
        lines.append(f"| {label} | {' | '.join(cells(data['rows'][key]))} |")
    return "\n".join([*lines, "", *scope_lines(scope)])


def scope_lines(scope: Mapping[str, Any]) -> list[str]:
    """How the scope chooses, as a table of two columns; what could not be asked is left out."""
    alias, brought, hop, pairs = scope["aliases"], scope["brought_up"], scope["multi_hop"], scope["pairs"]
    homonyms = scope["homonyms"]
    lines: dict[str, str] = {}
    if homonyms["prompts"]:
        lines["false activation: names in another meaning"] = (
            f"{homonyms['activated']} of {homonyms['prompts']} prompts get the adapter, "
            f"{homonyms['changed']} answers change"
        )
    lines["aliases"] = (
        f"{alias['declared']} of {alias['prompts']} prompts in scope; {alias['undeclared']} if no alias were declared"
    )
    if hop["prompts"]:
        lines["missed: two-step questions that never name the subject"] = (
            f"of {hop['prompts']} the new answer comes {hop['scoped']} times, with the adapter on anyway "
            f"{hop['held']}, from base {hop['base']}"
        )
    lines["missed: subjects that the model brings up itself"] = (
        f"{brought['brought_up']} of {brought['prompts']} answers mention an edited subject that the prompt did not; "
        "the next turn has it in scope"
    )
    if pairs["prompts"]:
        first, again = pairs["first_ms"], pairs["again_ms"]
        lines[f"prompts that name two edited subjects ({pairs['prompts']})"] = (
            f"right with both {pairs['both']:.3f}, with its own adapter only {pairs['own_only']:.3f}, base "
            f"{pairs['base']:.3f}; not vouched for: {pairs['refused']}"
        )
        lines["router time of a pair"] = (
            f"at first use p50 {_ms(first['p50'])}, p99 {_ms(first['p99'])}; "
            f"again p50 {_ms(again['p50'])}, p99 {_ms(again['p99'])}"
        )
    lines["requests refused in all"] = str(scope["refused"])
    return ["| how the scope chooses | |", "|---|---|", *(f"| {what} | {value} |" for what, value in lines.items())]


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} ms"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1000, help="edits (default 1000)")
    parser.add_argument("--asked", type=int, default=100, help="edits whose probes are asked (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default 1)")
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="store to use or make")
    return parser.parse_args()


if __name__ == "__main__":
    main()
