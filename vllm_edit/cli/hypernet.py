"""`vllm-edit hypernet`: train the network of MEND or KnowledgeEditor, and describe a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import JsonOption, seed_of
from vllm_edit.cli.output import print_fields, print_json, print_line, progress_bar

if TYPE_CHECKING:
    from vllm_edit.editing.hypernetworks.network_training import NetworkTrainingState, TrainedNetwork
    from vllm_edit.editing.network_files import Card

app = group("The hypernetwork of MEND or KnowledgeEditor: train a network for a model, or describe a network.")

MethodOption = Annotated[Literal["mend", "ke"], typer.Option(help="mend: MEND. ke: KnowledgeEditor.")]


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the network, and for checkpoints on the way.")],
    model: Annotated[str, typer.Option(help="atlas (shipped), a model folder, or a hub id.")] = "atlas",
    method: MethodOption = "mend",
    layers: Annotated[int, typer.Option(min=1, help="Number of last layers whose matrices are edited.")] = 3,
    edits: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATCH.yaml",
            help="Edits to train on, with their `tune` probes; may be repeated. atlas makes its own.",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="DATASET.json", help="A data set to train on (CounterFact, zsRE, …); may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum records of each data set.")] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A store of the model: train on facts of its pool that `eval known` does not judge, and on its text.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of edits generated for atlas, or from the pool.")] = 4000,
    judged: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Patches, data sets, or folders of them, whose subjects must not be trained on; may be repeated.",
        ),
    ] = None,
    texts: Annotated[Path | None, typer.Option(help="Unrelated text, a passage per line; atlas has its own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Maximum training steps; default: the settings'.")] = None,
    seed: Annotated[
        int, typer.Option(parser=seed_of, metavar="N", help="Seed of atlas's edits, the network and the sampling.")
    ] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the training, e.g. rate=0.002; may be repeated."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train a network on edits of patch files, data sets, and a store's pool of facts that the model knows.

    Edits of a data set or pool are left out if they are about a judged subject; in a patch file, they are an error.
    The folder has the best network so far from the first validation on. A stopped training resumes when it is started
    again.
    """
    from dataclasses import asdict

    from vllm_edit.cli.method_settings import method_settings
    from vllm_edit.cli.model_inputs import load_base
    from vllm_edit.cli.training_inputs import TrainingInputs
    from vllm_edit.editing.hypernetworks.network_training import CHECKPOINT
    from vllm_edit.editing.hypernetworks.network_training import train as run
    from vllm_edit.editing.network_files import Card, save
    from vllm_edit.editing.network_methods import network_method

    given = method_settings(settings) | {"seed": seed} | ({} if steps is None else {"steps": steps})
    network = network_method(method)
    chosen = network.settings.of(given)
    base = load_base(model)
    inputs = TrainingInputs(base, edits or [], data or [], limit, store, count, judged or [], texts, seed)
    modules = network.matrices(base, layers)
    started = time.perf_counter()

    def saved(trained: TrainedNetwork) -> Card:
        card = Card(
            digest=trained.network.digest,
            base=base.fingerprint.digest,
            model=base.name,
            modules=modules,
            settings=dict(chosen),
            edits=len(inputs.edits),
            subjects=len({edit.subject for edit in inputs.edits}),
            step=trained.step,
            validation=asdict(trained.validation),
            method=method,
        )
        save(out, trained.network, card)
        return card

    with progress_bar("hypernet train") as bar:

        def report(progress: NetworkTrainingState) -> None:
            bar("steps", progress.step, progress.steps)
            _print_validation(progress)
            if progress.best is not None:
                saved(progress.best)

        trained = run(network, base, modules, inputs.edits, inputs.texts, chosen, out, report)
    card = saved(trained)
    (out / CHECKPOINT).unlink(missing_ok=True)
    seconds = round(time.perf_counter() - started, 1)
    fields = _fields(card) | {"folder": str(out), "steps": trained.stopped, "seconds": seconds}
    print_json(fields) if json else print_fields(fields)


@app.command()
def info(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a network; default: the method's network shipped for atlas.")
    ] = None,
    method: MethodOption = "mend",
    json: JsonOption = False,
) -> None:
    """Show what a network edits, how it was trained, and its validation scores on unseen subjects."""
    from vllm_edit.atlas.hypernetworks import NETWORK_FOLDERS
    from vllm_edit.editing.network_files import load

    place = folder or NETWORK_FOLDERS[method]
    _, card = load(place)
    fields = _fields(card) | {"folder": str(place)}
    print_json(fields | {"settings": card.settings}) if json else print_fields(fields)


def _fields(card: Card) -> dict[str, object]:
    return {
        "network": card.digest,
        "method": card.method,
        "model": card.model,
        "base": card.base,
        "matrices": ", ".join(card.modules),
        "edits": card.edits,
        "subjects": card.subjects,
        "best_step": card.step,
        **{f"validation_{name}": round(value, 4) for name, value in card.validation.items()},
    }


def _print_validation(progress: NetworkTrainingState) -> None:
    """Print one line on stderr for each validation, so that log files show it too."""
    if progress.validation is not None:
        shares = "  ".join(f"{name} {value:.3f}" for name, value in vars(progress.validation).items())
        best = "  (best)" if progress.best else ""
        print_line(f"step {progress.step}/{progress.steps}  {shares}{best}", error=True)
