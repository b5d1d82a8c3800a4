"""What the benchmarks on atlas edit: a seeded draw of facts that it knows, and the store that they are compiled in."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vllm_edit import atlas
from vllm_edit.atlas.edits import draw_edits
from vllm_edit.atlas.facts import Facts
from vllm_edit.editing.base import Base
from vllm_edit.editing.sweep import choose_site
from vllm_edit.evaluation.judging import gives
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.patch import Edit, Patch
from vllm_edit.store.store import Store


def single_patches(runner: HFRunner, count: int, seed: int) -> list[Patch]:
    """`known_edits`, each in a patch of its own."""
    edits = known_edits(runner, count, seed)
    return [Patch(name=f"edit-{number:03d}", edits=(edit,)) for number, edit in enumerate(edits)]


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
