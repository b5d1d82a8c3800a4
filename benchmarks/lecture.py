"""The lecture's example, edited by every method: its five questions before and after, as a page with a picture.

    python -m benchmarks.lecture [--store runs/bench]

The patch is `patches/lecture.yaml`, for atlas. The questions are the edit's prompt and, of each kind, the first probe
that no method sees. The page is docs/lecture.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from rich.console import Console

from benchmarks.common.atlas_edits import Place, open_places, over_layers_of
from benchmarks.common.report_rows import SETTINGS
from benchmarks.common.results_page import FOLDER, machine
from benchmarks.common.variants import VARIANTS, Variant
from vllm_edit import atlas
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.cli.output import progress_bar
from vllm_edit.editing.compile import compile_patch
from vllm_edit.evaluation.answer_states import STATES, Cell, cell
from vllm_edit.evaluation.evaluate import evaluate
from vllm_edit.evaluation.report import Answer, Mode, Report
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.demonstrations import with_demonstrations
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch, Scope

PATCH = FOLDER.parent / "patches" / "lecture.yaml"
PAGE = FOLDER.parent / "docs" / "lecture.md"
PICTURE = FOLDER.parent / "docs" / "images" / "lecture.svg"
KINDS = {
    "reliability": "the edit",
    "paraphrase": "another wording",
    "reverse": "the reverse",
    "portability": "a conclusion",
    "locality": "a neighbour",
}
"""Metric → what its question asks about. One question of each is shown."""
LONGEST = 24
"""Characters of an answer that are shown."""


@dataclass(frozen=True)
class Row:
    """A row of the figure: a method, and the scope of the patch."""

    title: str
    variant: Variant
    scope: Scope = "all"


_NAMES = {"ROME": "r-ROME", "KE": "KnowledgeEditor"}
_LEFT_OUT = ("FT-M limited",)
ROWS = (
    Row("r-ROME", VARIANTS["ROME"]),
    Row("r-ROME, scope subject", VARIANTS["ROME"], "subject"),
    *(Row(_NAMES.get(name, name), variant) for name, variant in VARIANTS.items() if name not in ("ROME", *_LEFT_OUT)),
)


def main() -> None:
    arguments = _arguments()
    console = Console()
    base = Base.load("atlas")
    places = open_places(arguments.store, None, base, console)
    patch, runner = Patch.load(PATCH), HFRunner(base.model, base.tokenizer)
    table: dict[str, list[Cell]] = {}
    questions: list[Answer] = []
    with progress_bar("lecture") as progress:
        for number, row in enumerate(ROWS):
            progress("methods", number, len(ROWS))
            place = places[row.variant.method]
            if row.variant.layers > 1:
                place = over_layers_of(place, base, row.variant.layers, place.site.max_rank)
            compiled = compiled_by(row, patch, place, base)
            report = evaluate(compiled, runner, ("base", "weights"), SETTINGS)
            questions = shown(report)
            table.setdefault("before", [shortened(answer, "base") for answer in questions])
            table[row.title] = [shortened(answer, "weights") for answer in questions]
        progress("methods", len(ROWS), len(ROWS))
    demonstrated = with_demonstrations(compiled, Bank.from_records(atlas.bank()), base.tokenizer)
    prompted = shown(evaluate(demonstrated, runner, ("base", "ike"), SETTINGS))
    table["IKE (a prompt)"] = [shortened(answer, "ike") for answer in prompted]
    write(patch, questions, table, " ".join(["python -m benchmarks.lecture", *sys.argv[1:]]))
    console.print(f"wrote {PAGE.relative_to(FOLDER.parent)} and {PICTURE.relative_to(FOLDER.parent)}")


def compiled_by(row: Row, patch: Patch, place: Place, base: Base) -> CompiledPatch:
    """The patch by the row's method at its place; an edit that misses is shown as the miss that it is."""
    scoped = patch.model_copy(update={"scope": row.scope})
    settings = {**row.variant.settings, "on_missed": "report"}
    return compile_patch(
        scoped, base, row.variant.method, site=place.site, site_tensors=place.site_tensors, settings=settings
    )


def shown(report: Report) -> list[Answer]:
    """The first question of each kind, as plain text."""
    plain = [answer for answer in report.answers or () if not answer.chat]
    return [next(answer for answer in plain if answer.metric == metric) for metric in KINDS]


def shortened(answer: Answer, mode: Mode) -> Cell:
    """The mode's answer with at most `LONGEST` characters."""
    found = cell(answer, mode)
    assert found is not None, "one edit, and modes without a server: no prompt is refused"
    return found if len(found.text) <= LONGEST else replace(found, text=f"{found.text[:LONGEST]}…")


def write(patch: Patch, questions: Sequence[Answer], table: Mapping[str, Sequence[Cell]], command: str) -> None:
    """The picture and the page around it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "common"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    heads = [
        {"kind": KINDS[question.metric], "prompt": question.prompt, "wanted": question.expected or ""}
        for question in questions
    ]
    values = {"patch": patch, "heads": heads, "table": table, "states": STATES, "command": command.strip()}
    values["machine"] = machine()
    PICTURE.write_text(environment.get_template("lecture.svg.j2").render(values), encoding="utf-8")
    PAGE.write_text(environment.get_template("lecture.md.j2").render(values) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--store", type=Path, default=Path("runs/bench"), help="store to use or make")
    return parser.parse_args()


if __name__ == "__main__":
    main()
