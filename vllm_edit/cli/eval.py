"""`vllm-edit eval`: base, weights and IKE side by side, on the same probes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vllm_edit.cli.method_settings import method_in, method_settings
from vllm_edit.cli.options import BankOption, JsonOption, ModelOption, SetOption, StoreOption, seed_of
from vllm_edit.cli.output import print_json, progress_bar, wide_console
from vllm_edit.cli.patches import resolved
from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONObject

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm_edit.artefacts.compiled import CompiledPatch
    from vllm_edit.datasets import LeftOut
    from vllm_edit.edit import Edit
    from vllm_edit.evaluation.evaluation_settings import EvaluationSettings
    from vllm_edit.evaluation.refused import Refused
    from vllm_edit.evaluation.report import Mode, Report
    from vllm_edit.evaluation.runners.runner import Runner
    from vllm_edit.ike.bank import Bank
    from vllm_edit.models.base import Base
    from vllm_edit.patch import Patch
    from vllm_edit.progress import Progress
    from vllm_edit.release.pipeline import Pipeline
    from vllm_edit.store.store import Store

KNOWN = "known"
"""The target that draws facts from the store's pool. A compiled patch of this name is `known@…`."""
_KNOWN = 32


def eval(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="PATCH.yaml, a compiled NAME[@DIGEST], DATASET.json or .jsonl (CounterFact, KnowEdit, zsRE, MQuAKE, "
            "EasyEdit's columns), or known: facts that the model knows, changed individually.",
        ),
    ],
    mode: Annotated[str, typer.Option(help="Modes among base, weights, ike; with commas.")] = "base,weights,ike",
    engine: Annotated[Literal["hf", "vllm"], typer.Option(help="Engine: hf (transformers) or vllm.")] = "hf",
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Maximum records of a data set; for known, {_KNOWN} by default.")
    ] = None,
    seed: Annotated[int, typer.Option(parser=seed_of, metavar="N", help="Seed of the facts drawn for known.")] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of an answer; default: 16, more if an accepted answer is longer."),
    ] = None,
    model: ModelOption = None,
    method: Annotated[
        str, typer.Option(help="Editing method, if the target must be compiled; auto: the store's.")
    ] = "rome",
    settings: SetOption = None,
    bank: BankOption = None,
    answers: Annotated[bool, typer.Option("--answers", help="Show every answer before and after.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with plots and every answer.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save results of a data set as it runs: the same command then resumes."),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Measure reliability, generalization and locality of a patch, or of many individual edits.

    The report shows free generation, then teacher forcing, with 95 % intervals, added tokens and seconds. A refused
    edit fails every metric that needs it. The report of a stored patch is recorded with it. Data set records that are
    not edits are skipped and counted; --json lists each with its index and the reason.

    `eval known` checks whether a new base can be edited: it takes facts of the tables that the model knows, drawn in
    the same way for every model, and changes each to another object of its relation. If the store has no pool of known
    facts yet, the command measures and stores it.
    """
    from vllm_edit.datasets import DataSet, is_data_set

    modes, chosen = _modes(mode), method_settings(settings)
    many = target == KNOWN or is_data_set(target)
    _check_used(context, target, many)
    from vllm_edit.evaluation.evaluation_settings import EvaluationSettings
    from vllm_edit.evaluation.table import table
    from vllm_edit.files import check_folder_of
    from vllm_edit.pages.page import check_page
    from vllm_edit.pages.report_pages import evaluation_page
    from vllm_edit.store.store import Store

    if html is not None:
        check_page(html)
    if record is not None:
        check_folder_of(record)
        _check_apart(record, target)

    opened = Store.open(store)
    wanted = EvaluationSettings(max_tokens=max_tokens, answers=True)
    compiling = _Compiling(opened, model, method_in(store, method, chosen), chosen, bank)
    with progress_bar(target) as progress:
        if many:
            left_out: tuple[LeftOut, ...] = ()
            if target == KNOWN:
                patches = compiling.known(limit or _KNOWN, seed, progress)
            else:
                found = DataSet.load(target, limit)
                patches, left_out = _apart(found.records, "edit"), found.left_out
            report = _of_many(patches, compiling, engine, modes, wanted, record, progress)
            report = report.model_copy(update={"left_out": left_out})
        else:
            report = _of_one(target, compiling, engine, modes, wanted, progress)
    shown = report if answers else report.model_copy(update={"answers": None})
    if html is not None:
        html.write_text(evaluation_page(report), encoding="utf-8")
    if json:
        print_json(shown.model_dump(mode="json"))
    else:
        wide_console().print(table(shown))


def _check_used(context: typer.Context, target: str, many: bool) -> None:
    """Refuse options that the user gave and that this target does not use.

    Raises:
        BadParameter: the first such option, with the reason.
    """
    from vllm_edit.patch import is_patch_file

    stored = not many and not is_patch_file(target)
    unused = {
        "record": None if many else "only many edits, of a data set or known, are recorded",
        "limit": None if many else "one patch is measured with all its edits",
        "seed": None if target == KNOWN else "only the facts of known are drawn at random",
        **dict.fromkeys(
            ("method", "settings", "bank"), f"{target} is compiled already; name its PATCH.yaml" if stored else None
        ),
    }
    flags = {"settings": "--set"}
    for name, reason in unused.items():
        source = context.get_parameter_source(name)
        if reason is not None and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(reason, param_hint=flags.get(name, f"--{name}"))


def _check_apart(record: Path, target: str) -> None:
    """Raise `EditError` if the record would be written into the data set itself."""
    if os.path.exists(target) and record.exists() and record.samefile(target):
        raise EditError(f"--record names the data set {target} itself; name another file")


def _modes(text: str) -> list[Mode]:
    from vllm_edit.evaluation.report import in_order

    return in_order([mode.strip() for mode in text.split(",") if mode.strip()])


class _Compiling:
    """Compiles declared patches with the store's base model, which is loaded at its first use."""

    def __init__(self, store: Store, model: str | None, method: str, settings: JSONObject, bank: Path | None) -> None:
        self.store, self._model, self.method, self.settings = store, model, method, settings
        self._bank_file = bank

    @property
    def model(self) -> str:
        """Where the base model is."""
        return self._model or self.store.site().model

    @cached_property
    def base(self) -> Base:
        from vllm_edit.cli.model_inputs import base_of

        return base_of(self.store, self._model)

    @cached_property
    def bank(self) -> Bank:
        from vllm_edit.cli.model_inputs import bank_of

        return bank_of(self.store, self._bank_file)

    @cached_property
    def _pipeline(self) -> Pipeline:
        from vllm_edit.release.pipeline import Pipeline

        return Pipeline(self.store, self.base, self.bank)

    def __call__(self, patches: Sequence[Patch], progress: Progress) -> Sequence[CompiledPatch | Refused]:
        return self._pipeline.attempt(patches, self.method, self.settings, progress)

    def known(self, count: int, seed: int, progress: Progress) -> list[Patch]:
        """Return at most `count` patches, each with one edit of a fact that the base knows.

        Raises:
            EditError: the base knows too few facts to evaluate an edit.
        """
        from vllm_edit.facts import tables_folder
        from vllm_edit.facts.facts import Facts
        from vllm_edit.facts.known_edits import judged_edits
        from vllm_edit.facts.stored_pool import pool_of

        pool = pool_of(self.store, self.base, progress)
        edits = judged_edits(pool, Facts.load(tables_folder()), self.base, count, seed=seed, progress=progress)
        if not edits:
            raise EditError(
                f"{self.model} knows {len(pool.known)} of {sum(pool.asked.values())} facts, too few for an edit with "
                "neighbours: evaluate edits of your own (PATCH.yaml or DATASET.json)"
            )
        return _apart([(edit,) for edit in edits], "known")


def _apart(edits: Sequence[Sequence[Edit]], name: str) -> list[Patch]:
    """Make a patch of each group of edits, so that the groups are measured independently."""
    from vllm_edit.patch import Patch

    return [Patch(name=f"{name}-{number}", edits=tuple(some)) for number, some in enumerate(edits)]


def _of_one(
    target: str,
    compiling: _Compiling,
    engine: str,
    modes: Sequence[Mode],
    settings: EvaluationSettings,
    progress: Progress,
) -> Report:
    """Evaluate a patch: a YAML file, which is compiled, or a stored patch, with which the report is recorded."""
    from vllm_edit.evaluation.evaluate import evaluate
    from vllm_edit.evaluation.refused import Refused
    from vllm_edit.patch import Patch, is_patch_file

    store = compiling.store
    if is_patch_file(target):
        (measured,) = compiling([Patch.load(target)], progress)
        if isinstance(measured, Refused):
            raise _nothing({measured.name: measured.reason})
    else:
        measured = store.load(resolved(store, target))
    rank = max(store.site().max_rank, measured.manifest.rank)
    with _runner(engine, compiling, rank) as runner:
        report = evaluate(measured, runner, modes, settings, progress, store.site(), store.passages())
    if measured.name in store.names():
        store.add_record(measured.name, "report", report.model_dump(mode="json"))
    return report


def _of_many(
    patches: Sequence[Patch],
    compiling: _Compiling,
    engine: str,
    modes: Sequence[Mode],
    settings: EvaluationSettings,
    record: Path | None,
    progress: Progress,
) -> Report:
    """Evaluate patches individually, without the drift on ordinary text: each patch would have to read all passages."""
    from vllm_edit.digest import digest_json
    from vllm_edit.evaluation.in_batches import evaluate_in_batches, identity
    from vllm_edit.evaluation.record import Record

    site = compiling.store.site()
    partial = None
    if record is not None:
        this = identity(
            patches,
            modes,
            settings,
            bank=digest_json(compiling.bank.model_dump(mode="json")),
            engine=engine,
            site=site.digest,
            method=compiling.method,
            set=compiling.settings,
        )
        partial = Record.open(record, this)
    with _runner(engine, compiling, site.max_rank) as runner:
        report = evaluate_in_batches(patches, compiling, runner, modes, settings, partial, progress, site)
    if len(report.refused) == len(patches):
        raise _nothing(report.refused)
    return report


def _nothing(refused: Mapping[str, str]) -> EditError:
    reasons = [f"{name}: {line}" for name, reason in refused.items() for line in reason.splitlines()]
    return EditError("\n".join(["nothing could be compiled", *reasons]))


@contextmanager
def _runner(engine: str, compiling: _Compiling, rank: int) -> Iterator[Runner]:
    """Start the engine with the store's base model. `rank`: the maximum rank of its adapters.

    Raises:
        Incompatible: the model is not the store's base.
    """
    from vllm_edit.errors import Incompatible

    store, named = compiling.store, compiling.model
    site = store.site()
    wrong = f"{named} is not the base of {store.url}; evaluate with the model that the store was made for"
    if engine == "vllm":
        from vllm_edit.artefacts.site import Fingerprint
        from vllm_edit.evaluation.runners.vllm import VLLMRunner
        from vllm_edit.serving.served_model import served_model

        path, _ = served_model(named)
        with VLLMRunner(path, site.modules, rank, slots=site.slots) as runner:
            if site.base.departures(Fingerprint.of_folder(runner.folder)):
                raise Incompatible(wrong)
            yield runner
        return
    from vllm_edit.evaluation.runners.hf import HFRunner

    if site.base.departures(compiling.base.fingerprint):
        raise Incompatible(wrong)
    yield HFRunner(compiling.base.model, compiling.base.tokenizer)
