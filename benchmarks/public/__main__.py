"""python -m benchmarks.public: see the package."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.arguments import count, numbers
from benchmarks.common.model_store import model_store
from benchmarks.common.results_page import FOLDER, machine, write_marked, write_section
from benchmarks.public.figures import SETTINGS
from benchmarks.public.page import OVERVIEW_SET, overview, section, with_earlier, without_times
from benchmarks.public.place import TEXT, Places, networks_of, passages
from benchmarks.public.rows import ABLATIONS, BASE, ROME, SLOW, SUBJECT, Title, has_place, titles
from benchmarks.public.run import Run, forget
from benchmarks.public.sets import MEANINGS, NEAR, SETS, drawn_sets, needs_knowledge, stored_knowledge
from vllm_edit.cli.output import progress_bar
from vllm_edit.errors import EditError
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.time_left import TimeLeft
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.progress import Progress


def main() -> None:
    arguments = _arguments()
    console = Console()
    try:
        data = _measured(arguments, console)
        if arguments.no_times:
            data = without_times(data)
        name = "ablation" if arguments.ablation else "public"
        if arguments.add:
            data = with_earlier(json.loads((FOLDER / "results" / f"{name}.json").read_text()), data)
    except EditError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on where this one stopped")
    if arguments.limit is None:
        write_section(name, section(data), data, command="python -m benchmarks.public " + " ".join(sys.argv[1:]))
        if not arguments.ablation and OVERVIEW_SET in data["sets"]:
            write_marked(FOLDER.parent / "docs" / "methods.md", "public", overview(data))
        return
    console.print(section(data), markup=False, soft_wrap=True)
    console.print("RESULTS.md is written by a run without --limit only")


def _measured(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    base = Base.load(arguments.model)
    networks = networks_of(arguments.network)
    every = (BASE, ROME, f"{ROME}{SUBJECT}", *ABLATIONS) if arguments.ablation else titles(arguments.sizes)
    if arguments.rows is None:
        every = tuple(title for title in every if has_place(title, networks))
    rows = _chosen(arguments.rows, every, "row")
    default = NEAR if arguments.ablation else ",".join(SETS)
    names = _chosen(arguments.sets or default, tuple(MEANINGS), "set")
    folder = arguments.folder / base.fingerprint.digest[:12]
    if arguments.fresh:
        forget(folder)
    given = model_store(arguments.store or str(folder / "store"), base)
    places = Places(base, given, folder, max(arguments.sizes), networks)
    text = passages(arguments.data, given, arguments.seed)
    knowledge = []
    if needs_knowledge(names):
        with progress_bar(base.name) as progress:
            knowledge = stored_knowledge(base, arguments.data, folder, progress)
    sets = drawn_sets(names, arguments.data, knowledge, arguments.seed, arguments.limit)
    site = given.site()
    run = Run(base, places, folder / site.digest[:12], text, arguments.fluency)
    return {
        "model": base.name,
        "site": f"{site.module}, token {site.token}",
        "engine": HFRunner(base.model, base.tokenizer).name,
        "machine": machine(),
        "max_tokens": SETTINGS.max_tokens,
        "writes": arguments.fluency,
        "baselines": arguments.baselines,
        "text": TEXT if (arguments.data / TEXT).is_file() else "the store's passages",
        "seed": arguments.seed,
        "sets": _results(run, sets, rows, arguments.baselines, console),
    }


def _results(
    run: Run, sets: Mapping[str, Sequence[Patch]], rows: Sequence[str], baselines: int, console: Console
) -> dict[str, Any]:
    """Set → row → figure → what is known of it. baselines: edits of a set for the slow rows."""
    results: dict[str, Any] = {}
    parts = {
        (name, title): patches[:baselines] if (Title.of(title).entry or title) in SLOW else patches
        for name, patches in sets.items()
        for title in rows
    }
    left = TimeLeft(sum(map(len, parts.values())))
    done = 0
    with progress_bar("public") as progress:
        run.progress = progress
        for (name, title), patches in parts.items():
            row_progress = _RowProgress(progress, left, f"{name}, {title}", done)
            figures = run.figures_of(title, name, patches, row_progress)
            done += len(patches)
            results.setdefault(name, {})[title] = {key: figure.as_record() for key, figure in figures.items()}
            console.print(f"{name}, {title}: {len(patches)} edits; {left.text(done)}", markup=False)
    return results


class _RowProgress:
    """From a row's edits to those of all rows. done: those of the rows before it."""

    def __init__(self, progress: Progress, left: TimeLeft, row: str, done: int) -> None:
        self._progress, self._left, self._row, self._done = progress, left, row, done

    def recorded(self, edits: int) -> None:
        self._left.skip(edits)

    def __call__(self, what: str, edits: int) -> None:
        done = self._done + edits
        self._progress(f"{self._row}: {what}; {self._left.text(done)}", done, self._left.total)


def _chosen(wanted: str | None, known: Sequence[str], what: str) -> list[str]:
    """The wanted names in the order in which they are known; all where none is wanted.

    Raises:
        EditError: a name that is not known.
    """
    names = list(known) if wanted is None else [name.strip() for name in wanted.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise EditError(f"there is no {what} {unknown[0]!r}; expected some of: {', '.join(known)}")
    return [name for name in known if name in names]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.public", description="SmolLM2 on public editing data")
    parser.add_argument("--model", default="bases/smollm2", help="folder of the model (default bases/smollm2)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public editing data")
    parser.add_argument(
        "--store", help="store whose site is used (default: one of the benchmark's own, made if needed)"
    )
    parser.add_argument(
        "--network", type=Path, action="append", default=[], help="folder of a network of MEND or KE; may be repeated"
    )
    parser.add_argument("--sets", help=f"some of {', '.join(MEANINGS)}, with commas; default: {', '.join(SETS)}")
    parser.add_argument(
        "--rows", help=f"some of {', '.join(titles((10, 100)))}, with commas; default: all whose network is given"
    )
    parser.add_argument(
        "--sizes", type=numbers(int), default=[10, 100], help="numbers of edits at once (default 10,100)"
    )
    parser.add_argument(
        "--ablation",
        action="store_true",
        help=f"r-ROME, and r-ROME with one thing changed ({', '.join(ABLATIONS)}), on a set of their own",
    )
    parser.add_argument("--limit", type=count, help="at most so many edits of a set; RESULTS.md is then left alone")
    parser.add_argument(
        "--baselines", type=count, default=50, help=f"edits of a set for {', '.join(SLOW)} (default 50)"
    )
    parser.add_argument("--fluency", type=int, default=50, help="edits of a set whose fluency is measured (default 50)")
    parser.add_argument("--no-times", action="store_true", help="leave seconds out: other programs were running")
    parser.add_argument("--add", action="store_true", help="keep the section's other sets and rows")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draws (default 1)")
    parser.add_argument("--folder", type=Path, default=Path("runs/public"), help="records of what is done already")
    parser.add_argument("--fresh", action="store_true", help="forget the records of this model and begin again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
