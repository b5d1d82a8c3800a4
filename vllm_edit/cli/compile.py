"""`vllm-edit compile`: patch files become compiled patches in the store."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from vllm_edit.cli.output import JsonOption, StoreOption, print_error, print_json, progress_bar
from vllm_edit.errors import EditError, PatchError, UnsafeEdit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_edit.patch import Patch


def compile_(
    files: Annotated[list[Path], typer.Argument(metavar="PATCH.yaml...", help="Patch files.")],
    model: Annotated[str | None, typer.Option(help="Where the store's base model is now; default: as in init.")] = None,
    method: Annotated[str, typer.Option(help="Editing method.")] = "rome",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, e.g. steps=160; may be repeated."),
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="Facts in YAML that the model knows, for IKE; atlas brings its own.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Compile patches and store them; an edit that would miss or harm is refused by name."""
    patches, chosen = _read(files), _settings(settings or [])
    from vllm_edit.cli.material import bank_of, load_base
    from vllm_edit.editing.compile import compile_patch
    from vllm_edit.editing.statistics import SecondMoment
    from vllm_edit.ike.demonstrations import with_demonstrations
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    site, moment = opened.site(), SecondMoment.from_tensors(opened.moment())
    facts = bank_of(site.model, bank)
    base = load_base(model or site.model)
    done, refused = [], []
    for patch in patches:
        started = time.perf_counter()
        try:
            with progress_bar(patch.name) as progress:
                compiled = compile_patch(
                    patch, base, method, site=site, moment=moment, settings=chosen, progress=progress
                )
        except UnsafeEdit as error:
            refused += [f"{patch.name}: {line}" for line in str(error).splitlines()]
            continue
        compiled = with_demonstrations(compiled, facts, base.tokenizer)
        report = {**compiled.report, "seconds": round(time.perf_counter() - started, 3)}
        name = opened.save(replace(compiled, report=report))
        done.append({"name": name, "rank": compiled.manifest.rank, "edits": len(patch.edits), "report": report})
        if not json:
            print(_line(done[-1]))
    if json:
        print_json({"compiled": done, "refused": refused})
    print_error("\n".join(refused))
    if refused:
        raise typer.Exit(1)


def _read(files: list[Path]) -> list[Patch]:
    """All patches, or every problem of every file at once."""
    from vllm_edit.patch import Patch

    patches, problems = [], []
    for file in files:
        try:
            patches.append(Patch.load(file))
        except PatchError as error:
            problems.append(str(error))
    if problems:
        raise EditError("\n".join(problems))
    return patches


def _settings(given: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` with the value read as YAML."""
    chosen = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="--set")
        chosen[key.strip()] = yaml.safe_load(value)
    return chosen


def _line(done: Mapping[str, Any]) -> str:
    """Name, size, time, and the worst of the patch's health."""
    report = done["report"]
    parts = [f"rank {done['rank']}", f"{done['edits']} edits", f"{report['seconds']:.1f} s"]
    margins = [edit["served_margin"] for edit in report.get("edits", ())]
    if margins:
        parts.append(f"least margin {min(margins):.2f} nats")
    if "norm" in report:
        parts.append(f"‖ΔW‖/‖W‖ {report['norm']:.3f}")
    return f"{done['name']}  {', '.join(parts)}"
