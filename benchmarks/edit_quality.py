"""How well atlas can be edited: 200 counterfactual single edits through vLLM, and 10, 50 and 100 of them at once.

    python -m benchmarks.edit_quality [--count 200] [--seed 1] [--store runs/bench]

The edits are drawn over all relations from facts that the base answers rightly; none of their subjects is among those
that chose the site or λ (`vllm_edit.atlas.edits`). The result goes into RESULTS.md with machine and command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.results import machine, write_section
from vllm_edit import atlas
from vllm_edit.atlas.edits import draw_edits
from vllm_edit.atlas.facts import Facts
from vllm_edit.composition.closed_form import as_saved, plain_sum
from vllm_edit.composition.compose import compose
from vllm_edit.composition.system import System
from vllm_edit.deltas.delta import Delta
from vllm_edit.editing.base import Base
from vllm_edit.editing.separately import compile_separately
from vllm_edit.editing.settings import RomeSettings
from vllm_edit.editing.statistics import SecondMoment
from vllm_edit.editing.sweep import choose_site
from vllm_edit.evaluation.evaluate import Settings, evaluate
from vllm_edit.evaluation.intervals import wilson
from vllm_edit.evaluation.judging import gives
from vllm_edit.evaluation.report import Answer, Mode, Report
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.evaluation.runners.vllm import VLLMRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.patch import Edit, Patch
from vllm_edit.store.compiled import CompiledPatch
from vllm_edit.store.store import Store

TOGETHER = (10, 50, 100)
COLUMNS = (
    ("reliability", ""),
    ("reliability_chat", ""),
    ("paraphrase", "trained"),
    ("paraphrase", "held_out"),
    ("reverse", ""),
    ("portability", "alias"),
    ("portability", "one_hop"),
    ("locality", ""),
    ("locality", "same_object"),
    ("locality_subject", ""),
    ("unrelated", ""),
)
"""(metric, tag of its probes)."""


def main() -> None:
    arguments = _arguments()
    console = Console()
    base = Base.load("atlas")
    store = open_store(arguments.store, base, console)
    site, moment = store.site(), SecondMoment.from_tensors(store.moment())
    runner = HFRunner(base.model, base.tokenizer)
    edits = known_edits(runner, arguments.count, arguments.seed)
    patches = [Patch(name=f"edit-{number:03d}", edits=(edit,)) for number, edit in enumerate(edits)]
    settings = RomeSettings(on_missed="report")
    started = time.perf_counter()
    with Progress(console=console) as bar:
        task = bar.add_task("compiling", total=len(patches))
        singles = compile_separately(
            patches,
            base,
            site=site,
            moment=moment,
            settings=settings,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    seconds = time.perf_counter() - started
    console.print(f"{len(singles)} edits compiled in {seconds:.1f} s, {seconds / len(singles):.2f} s an edit")
    bank = Bank.from_records(atlas.bank())
    compiled = [with_demonstrations(single, bank, base.tokenizer) for single in singles]

    rows: dict[str, dict[str, Any]] = {}
    together = {}
    for count in TOGETHER:
        if count <= len(singles):
            joint = compose(singles[:count])
            summed = _with_delta(joint, f"sum-{count}", _sum_of(singles[:count], site.module, site.damping))
            for name, composed in ((f"{count} joint", joint), (f"{count} sum", summed)):
                report = evaluate(composed, runner, ("base", "weights"), _settings())
                rows[name] = _row(report, "weights", [composed])
                together[name] = report
    with VLLMRunner(base.folder, site.modules, site.max_rank, slots=site.slots, max_model_len=512) as engine:
        report = evaluate(compiled, engine, ("base", "weights", "ike"), _settings(), progress=console.print)
    for mode in report.modes:
        rows[f"single, {mode}"] = _row(report, mode, compiled)
    text = _markdown(rows, report, compiled, site, seconds)
    console.print(text)
    data = {"rows": rows, "by_relation": _by_relation(report, compiled), "misses": _misses(report, compiled)}
    write_section("edit_quality", text, data, command="python -m benchmarks.edit_quality " + " ".join(sys.argv[1:]))


def known_edits(runner: HFRunner, count: int, seed: int) -> list[Edit]:
    """The first `count` drawn edits whose fact the base answers rightly."""
    facts = Facts.load(atlas.facts_folder())
    drawn = draw_edits(facts, count + count // 4, seed=seed)
    answers = runner.generate([Request(edit.prompt) for edit in drawn], 16)
    known = [edit for edit, answer in zip(drawn, answers, strict=True) if gives(answer, edit.target_true or "")]
    return known[:count]


def open_store(folder: Path, base: Base, console: Console) -> Store:
    """The store in `folder`; made, with a sweep, when it is not there or not this base's."""
    if (folder / "site.json").exists():
        store = Store.open(folder)
        if store.site().base == base.fingerprint:
            return store
        raise SystemExit(f"{folder} is another base's store; remove it")
    with console.status("choosing the site ..."):
        chosen = choose_site(base, atlas.sweep_edits(), atlas.texts())
    for measured in chosen.table:
        console.print(measured.as_record())
    return Store.create(folder, chosen.made.site, chosen.made.moment.tensors())


def _settings() -> Settings:
    return Settings(teacher_forced=False, latency=0, answers=True)


def _sum_of(singles: Sequence[CompiledPatch], module: str, damping: float) -> Delta:
    """The plain sum of single edits: what stacking adapters would serve."""
    import torch

    factors = [single.factors for single in singles if single.factors is not None]
    groups = [number for number, one in enumerate(factors) for _ in range(len(one.keys))]
    shares = [column.share for single in singles for column in single.manifest.columns]
    keys, whitened = torch.cat([one.keys for one in factors]), torch.cat([one.whitened for one in factors])
    system = System.of(keys, whitened, groups, damping, shares)
    update = plain_sum(system, torch.cat([one.residuals for one in factors]))
    return Delta({module: as_saved(update)})


def _with_delta(compiled: CompiledPatch, name: str, delta: Delta) -> CompiledPatch:
    manifest = compiled.manifest.model_copy(update={"patch": name, "adapter": delta.digest})
    return replace(compiled, manifest=manifest, delta=delta)


def _tags(compiled: Iterable[CompiledPatch]) -> dict[tuple[str, int, str, bool, str], str]:
    """(patch, edit, prompt, chat, metric) → tag of the probe."""
    return {
        (name, number, probe.prompt, probe.chat, probe.kind): probe.tag
        for name, one in [(one.name, one) for one in compiled]
        for number, edit in enumerate(one.manifest.edits)
        for probe in edit.probes
    }


def _selected(report: Report, compiled: Iterable[CompiledPatch], metric: str, tag: str) -> list[Answer]:
    tags = _tags(compiled)
    return [
        answer
        for answer in report.answers or ()
        if answer.metric == metric
        and tags.get((answer.patch, answer.edit, answer.prompt, answer.chat, metric), "") == tag
    ]


def _row(report: Report, mode: Mode, compiled: Sequence[CompiledPatch]) -> dict[str, Any]:
    """Metric → share over probes, count and 95 % Wilson interval; keeping metrics also with the true answer."""
    row: dict[str, Any] = {}
    for metric, tag in COLUMNS:
        answers = _selected(report, compiled, metric, tag)
        if answers:
            share = sum(answer.right[mode] for answer in answers) / len(answers)
            low, high = wilson(share, len(answers))
            row[f"{metric} {tag}".strip()] = {"share": share, "low": low, "high": high, "n": len(answers)}
    return row


def _by_relation(report: Report, compiled: Sequence[CompiledPatch]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, list[bool]]] = {}
    for metric, tag in COLUMNS:
        for answer in _selected(report, compiled, metric, tag):
            table.setdefault(answer.relation, {}).setdefault(f"{metric} {tag}".strip(), []).append(
                answer.right["weights"]
            )
    return {
        relation: {metric: sum(hits) / len(hits) for metric, hits in found.items()} for relation, found in table.items()
    }


def _misses(report: Report, compiled: Sequence[CompiledPatch]) -> list[dict[str, Any]]:
    """Every changing prompt that was not answered with the target, and every keeping prompt that moved."""
    return [
        {"metric": a.metric, "prompt": a.prompt, "chat": a.chat, "expected": a.expected, **a.texts}
        for a in report.answers or ()
        if not a.right["weights"] and a.metric != "reverse"
    ]


def _markdown(
    rows: dict[str, dict[str, Any]], report: Report, compiled: Sequence[CompiledPatch], site: Any, seconds: float
) -> str:
    names = [f"{metric} {tag}".strip() for metric, tag in COLUMNS]
    lines = [
        f"Site {site.module}, token `{site.token}`, λ {site.damping}, chosen by the sweep on other subjects.",
        f"{len(compiled)} edits, {seconds / len(compiled):.2f} s an edit in batches. {machine()}",
        "",
        "| edits | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for name, row in rows.items():
        cells = [f"{row[n]['share']:.3f}" if n in row else "–" for n in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Locality counts an answer that is unchanged from base; `same_object` are neighbours with the same true object",
    ]
    lines[-1] += ", as CounterFact chooses them. Tokens added per prompt: "
    lines[-1] += ", ".join(f"{cost.mode} {cost.tokens_added:.0f}" for cost in report.costs) + "."
    weak = {
        relation: found
        for relation, found in sorted(_by_relation(report, compiled).items())
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
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default 1)")
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="store to use or make")
    return parser.parse_args()


if __name__ == "__main__":
    main()
