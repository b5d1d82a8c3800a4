"""`vllm-edit eval`: base, weights and IKE side by side, on the same probes."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vllm_edit.cli.method_settings import SetOption, method_settings
from vllm_edit.cli.output import JsonOption, StoreOption, print_json, progress_bar, wide_console
from vllm_edit.errors import EditError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vllm_edit.evaluation.refused import Refused
    from vllm_edit.evaluation.report import Mode
    from vllm_edit.evaluation.runners.runner import Runner
    from vllm_edit.models.base import Base
    from vllm_edit.patch import Patch
    from vllm_edit.store.compiled import CompiledPatch
    from vllm_edit.store.store import Store


def eval(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="PATCH.yaml, a compiled NAME[@DIGEST], or DATASET.json (CounterFact, KnowEdit, zsRE).",
        ),
    ],
    mode: Annotated[str, typer.Option(help="Which of base, weights, ike; with commas.")] = "base,weights,ike",
    engine: Annotated[Literal["hf", "vllm"], typer.Option(help="What answers: transformers, or vLLM.")] = "hf",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many edits of a data set.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of a generated answer.")] = 16,
    model: Annotated[str | None, typer.Option(help="Where the store's base model is now; default: as in init.")] = None,
    method: Annotated[str, typer.Option(help="Editing method, for what is compiled here.")] = "rome",
    settings: SetOption = None,
    bank: Annotated[
        Path | None, typer.Option(help="Facts in YAML that the model knows, for IKE; atlas brings its own.")
    ] = None,
    answers: Annotated[bool, typer.Option("--answers", help="Show every answer before and after.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the tables to an HTML page.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Measure reliability, generalization and locality of a patch, or of a data set's edits one by one.

    Free generation first, then teacher forcing; 95 % intervals; tokens added and seconds. An edit that is refused fails
    every metric that needs it. The report of a stored patch is recorded with it.
    """
    modes, chosen = _modes(mode), method_settings(settings)
    from vllm_edit.evaluation.evaluate import Settings, evaluate
    from vllm_edit.evaluation.table import html as page
    from vllm_edit.evaluation.table import table
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    measured, base = _measured(target, opened, limit, model, method, chosen, bank)
    wanted = Settings(max_tokens=max_tokens, answers=True)
    passages = opened.passages() if len(measured) == 1 else ()  # a data set's edits would each read all of them
    with _runner(engine, opened, model, measured, base) as runner, progress_bar(target) as progress:
        report = evaluate(measured, runner, modes, wanted, progress, opened.site(), passages)
    shown = report if answers else report.model_copy(update={"answers": None})
    if len(measured) == 1 and measured[0].name in opened.names():
        opened.add_record(measured[0].name, "report", report.model_dump(mode="json"))
    if html is not None:
        html.write_text(page(shown), encoding="utf-8")
    if json:
        print_json(shown.model_dump(mode="json"))
    else:
        wide_console().print(table(shown))


def _modes(text: str) -> list[Mode]:
    from vllm_edit.evaluation.report import MODES

    asked = [mode.strip() for mode in text.split(",") if mode.strip()]
    unknown = [mode for mode in asked if mode not in MODES]
    if unknown or not asked:
        raise EditError(f"expected modes among {', '.join(MODES)}, got {text!r}")
    return [mode for mode in MODES if mode in asked]


def _measured(
    target: str,
    store: Store,
    limit: int | None,
    model: str | None,
    method: str,
    settings: dict[str, Any],
    bank: Path | None,
) -> tuple[Sequence[CompiledPatch | Refused], Base | None]:
    """What is measured, and the base if it was loaded for compiling that."""
    patches = _declared(target, limit)
    if patches is None:
        return [store.load(store.resolve(target))], None
    from vllm_edit.cli.material import bank_of, load_base
    from vllm_edit.evaluation.refused import Refused
    from vllm_edit.pipeline import Pipeline

    named = store.site().model
    pipeline = Pipeline(store, load_base(model or named), bank_of(named, bank))
    with progress_bar("compile") as progress:
        tried = pipeline.attempt(patches, method, settings, progress)
    refused = [one for one in tried if isinstance(one, Refused)]
    if len(refused) == len(tried):
        reasons = [f"{one.name}: {line}" for one in refused for line in one.reason.splitlines()]
        raise EditError("\n".join(["nothing could be compiled", *reasons]))
    return tried, pipeline.base


def _declared(target: str, limit: int | None) -> list[Patch] | None:
    """The patches of a file: one of YAML, one single edit each of a data set; None if `target` is a stored name."""
    from vllm_edit.datasets import read_edits
    from vllm_edit.patch import Patch

    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return [Patch.load(path)]
    if path.suffix == ".json":
        return [Patch(name=f"edit-{number}", edits=(edit,)) for number, edit in enumerate(read_edits(path, limit))]
    return None


@contextmanager
def _runner(
    engine: str, store: Store, model: str | None, measured: Sequence[CompiledPatch | Refused], base: Base | None
) -> Iterator[Runner]:
    """The engine with the store's base model in it.

    Raises:
        Incompatible: the model is not the one that the store was made for.
    """
    from vllm_edit.errors import Incompatible

    site = store.site()
    named = model or site.model
    wrong = f"{named} is not the base of {store.url}; evaluate with the model that the store was made for"
    if engine == "vllm":
        from vllm_edit.evaluation.runners.vllm import VLLMRunner
        from vllm_edit.serving.served_model import served_model
        from vllm_edit.store.compiled import CompiledPatch
        from vllm_edit.store.site import Fingerprint

        path, _ = served_model(named)
        rank = max([site.max_rank, *(one.manifest.rank for one in measured if isinstance(one, CompiledPatch))])
        with VLLMRunner(path, site.modules, rank, slots=site.slots) as runner:
            if Fingerprint.of_folder(runner.folder) != site.base:
                raise Incompatible(wrong)
            yield runner
        return
    from vllm_edit.cli.material import load_base
    from vllm_edit.evaluation.runners.hf import HFRunner

    base = base or load_base(named)
    if base.fingerprint != site.base:
        raise Incompatible(wrong)
    yield HFRunner(base.model, base.tokenizer)
