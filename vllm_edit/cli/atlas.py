"""`vllm-edit atlas`: the embedded base model, trained and described."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import seed_of
from vllm_edit.cli.output import print_json, print_line, wide_console

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_edit.atlas.accuracy import Accuracy
    from vllm_edit.atlas.training import TrainingState
    from vllm_edit.facts.facts import Facts

app = group("The embedded base model: train it, or show what it knows.")


@app.command()
def train(
    facts: Annotated[Path | None, typer.Option(help="Folder of fact tables; default: the shipped ones.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("runs/atlas"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: the recipe's.")] = None,
    seed: Annotated[int, typer.Option(parser=seed_of, metavar="N", help="Seed of weights and documents.")] = 0,
    start: Annotated[
        Path | None, typer.Option("--from", help="Folder of a model to start from; default: a new model.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate; default: the recipe's.")] = None,
) -> None:
    """Train the model on fact tables. A stopped training resumes when it is started again."""
    import dataclasses

    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from vllm_edit.atlas.training import Recipe
    from vllm_edit.atlas.training import train as run
    from vllm_edit.facts import tables_folder
    from vllm_edit.facts.facts import Facts

    tables = Facts.load(facts or tables_folder())
    recipe = Recipe(seed=seed)
    if rate is not None:
        recipe = dataclasses.replace(recipe, learning_rate=rate)
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=steps, warmup=min(recipe.warmup, steps))
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    console = wide_console()
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("loss …", total=recipe.steps)
        write = None if console.is_terminal else plain_lines(console.print)

        def report(progress: TrainingState) -> None:
            bar.update(task, completed=progress.step, description=f"loss {progress.loss:.3f}")
            if write is not None:
                write(progress)
            if progress.accuracy is not None:
                shares = ", ".join(f"{group} {share:.3f}" for group, share in sorted(progress.accuracy.shares.items()))
                console.print(f"step {progress.step}: {shares}")

        run(tables, out, recipe, start=start, report=report)
    print_line(f"wrote {out}")


def plain_lines(write: Callable[[str], None], every_s: float = 30.0) -> Callable[[TrainingState], None]:
    """Write progress as lines if there is no terminal for a bar: the first step, the last, and one per `every_s`.

    `TrainingState.seconds` count from the start of the run.
    """
    due = 0.0

    def report(progress: TrainingState) -> None:
        nonlocal due
        if progress.seconds >= due or progress.step == progress.steps:
            due = progress.seconds + every_s
            write(f"step {progress.step}/{progress.steps}: loss {progress.loss:.3f}, {progress.seconds:.0f} s")

    return report


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model: Annotated[Path | None, typer.Option(help="Folder of the model; default: the shipped one.")] = None,
    measure: Annotated[
        bool, typer.Option(help="Ask every fact (a minute) instead of reading the stored result.")
    ] = False,
) -> None:
    """Show the folder, fact files, counts by relation and language, and the share that the model knows."""
    from vllm_edit.atlas.training import read_accuracy
    from vllm_edit.facts import tables_folder
    from vllm_edit.facts.facts import Facts
    from vllm_edit.shipped import weights_folder

    folder = model or weights_folder()
    facts = Facts.load(tables_folder())
    by_language: dict[str, int] = {}
    for fact in facts:
        by_language[fact.relation.language] = by_language.get(fact.relation.language, 0) + 1
    accuracy = _measured(folder, facts) if measure else read_accuracy(folder)
    found = _Info(
        folder=str(folder),
        fact_files=sorted(str(path) for path in tables_folder().glob("*.csv")),
        subjects=len(facts.subjects),
        facts=len(list(facts)),
        facts_by_language=by_language,
        facts_by_relation={relation: len(group) for relation, group in facts.by_relation.items()},
        accuracy=accuracy.shares,
        accuracy_counts=accuracy.counts,
        accuracy_by_relation=accuracy.by_relation,
    )
    if as_json:
        print_json(found)
    else:
        _print(found)


@dataclass(frozen=True)
class _Info:
    """Numbers of the tables and of what the model knows of them, as JSON shows them."""

    folder: str
    fact_files: list[str]
    subjects: int
    facts: int
    facts_by_language: dict[str, int]
    facts_by_relation: dict[str, int]
    accuracy: dict[str, float]
    accuracy_counts: dict[str, int]
    accuracy_by_relation: dict[str, dict[str, float]]


def _measured(folder: Path, facts: Facts) -> Accuracy:
    from rich.progress import Progress as Bar

    from vllm_edit.atlas.accuracy import measure_accuracy
    from vllm_edit.models.base import Base

    base = Base.load(folder)
    with Bar() as bar:
        task = bar.add_task("asking", total=None)
        return measure_accuracy(
            facts,
            base.model,
            base.tokenizer,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _print(found: _Info) -> None:
    from rich.table import Table

    console = wide_console()
    console.print(f"{found.folder}: {found.facts} facts about {found.subjects} subjects")
    console.print("languages: " + ", ".join(f"{key} {count}" for key, count in found.facts_by_language.items()))
    groups = list(found.accuracy)
    table = Table("relation", "facts", *groups, title="share of right answers by free greedy generation")
    for relation, count in found.facts_by_relation.items():
        shares = found.accuracy_by_relation.get(relation, {})
        table.add_row(relation, str(count), *(f"{shares[g]:.3f}" if g in shares else "" for g in groups))
    table.add_row("all", str(found.facts), *(f"{found.accuracy[g]:.3f}" for g in groups), style="bold")
    console.print(table)
