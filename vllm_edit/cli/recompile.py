"""`vllm-edit recompile`: the patches of a store, compiled for a new base model in another store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.method_settings import method_in, method_settings
from vllm_edit.cli.options import BankOption, JsonOption, ModelOption, SetOption, StoreOption
from vllm_edit.cli.output import print_error, print_json, print_line, print_table, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_edit.release.recompile_report import RecompiledPatch


def recompile(
    to: Annotated[str, typer.Option("--to", metavar="NEW", help="The new store, made for the new base.")],
    everything: Annotated[bool, typer.Option("--all", help="All patches, not only those that tenants are served.")] = (
        False
    ),
    again: Annotated[bool, typer.Option("--again", help="Also the patches that an earlier run has done.")] = False,
    model: ModelOption = None,
    method: Annotated[str, typer.Option(help="Method, as of compile; auto: the new store's.")] = "auto",
    settings: SetOption = None,
    bank: BankOption = None,
    to_registry: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The new store's database; default: as for every store."),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Compile the patches of --store for the base of another store, and report what becomes of each edit.

    Edits that the new base knows already are left out. Nothing is published. A run that was interrupted continues where
    it was. Exits 1 if a patch is refused or rejected.
    """
    from vllm_edit.store.store import Store

    old, new = Store.open(store), Store.open(to, to_registry)
    chosen = method_settings(settings)
    named = method_in(new, method, chosen)
    names = old.names()
    new.registry.generation()  # fails before a model is loaded if it is another store's
    from vllm_edit.cli.model_inputs import bank_of, base_of
    from vllm_edit.release.pipeline import Pipeline
    from vllm_edit.release.recompile import Recompilation

    pipeline = Pipeline(new, base_of(new, model), bank_of(new, bank))
    recompilation = Recompilation(old, pipeline, named, chosen)
    wanted = names if everything else recompilation.published()
    with progress_bar(f"{len(wanted)} patches") as progress:
        done = list(recompilation.run(wanted, progress, again=again))
    report = recompilation.report.model_copy(update={"patches": tuple(done)})
    if json:
        print_json(report.model_dump(mode="json") | {"file": report.path})
    else:
        _print(done)
        print_line(f"the report is {report.path} in {new.url}; nothing is published")
    problems = [f"{patch.old}: {problem}" for patch in done for problem in patch.problems]
    print_error("\n".join(problems))
    if any(patch.status in ("refused", "rejected") for patch in done):
        raise typer.Exit(1)


def _print(done: Sequence[RecompiledPatch]) -> None:
    from vllm_edit.names import short

    rows = [
        (
            short(patch.old),
            ", ".join(patch.served_to),
            len(patch.edits),
            *(patch.counts[result] for result in ("known", "holds", "fails", "refused")),
            patch.status,
            short(patch.new) if patch.new else "",
        )
        for patch in done
    ]
    print_table(("PATCH", "SERVED TO", "EDITS", "KNOWN", "HOLD", "FAIL", "REFUSED", "GATE", "NEW"), rows)
