"""`vllm-edit compile`: patch files become compiled patches in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.method_settings import method_in, method_settings
from vllm_edit.cli.options import BankOption, JsonOption, ModelOption, SetOption, StoreOption
from vllm_edit.cli.output import print_error, print_json, print_line, progress_bar
from vllm_edit.cli.sign import is_trusted, not_trusted
from vllm_edit.errors import EditError, PatchError
from vllm_edit.json_value import JSONObject

if TYPE_CHECKING:
    from vllm_edit.patch import Patch
    from vllm_edit.release.pipeline import Outcome


def compile_(
    files: Annotated[list[Path], typer.Argument(metavar="PATCH.yaml...", help="Patch files.")],
    model: ModelOption = None,
    method: Annotated[
        str,
        typer.Option(help="Method: rome, memit, alphaedit, mend, ke, ultraedit, ft or lora; auto: the store's."),
    ] = "rome",
    settings: SetOption = None,
    bank: BankOption = None,
    key: Annotated[
        Path | None, typer.Option("--sign", metavar="FILE", help="Sign each stored patch with this private key.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Compile patches, store them and run their gates.

    A patch with an ineffective or harmful edit is refused; a patch that fails its gate is stored as rejected. Both
    exit 1.
    """
    patches, chosen = _read(files), method_settings(settings)
    from vllm_edit.cli.model_inputs import bank_of, base_of
    from vllm_edit.evaluation.refused import Refused
    from vllm_edit.release.pipeline import Pipeline
    from vllm_edit.store.store import Store

    signing, trusted = None, True
    if key is not None:
        from vllm_edit.artefacts.signatures import SigningKey

        signing = SigningKey.load(key)
    named = method_in(store, method, chosen)
    opened = Store.open(store)
    if signing is not None:
        trusted = is_trusted(opened, signing)
    pipeline = Pipeline(opened, base_of(opened, model), bank_of(opened, bank))
    done: list[JSONObject] = []
    problems: list[str] = []
    with progress_bar(patches[0].name if len(patches) == 1 else f"{len(patches)} patches") as progress:
        for patch, result in pipeline.run_all(patches, named, chosen, progress):
            if isinstance(result, Refused):
                problems += [f"{patch.name}: {line}" for line in result.reason.splitlines()]
                continue
            if signing is not None:
                opened.sign(result.name, signing)
            problems += [f"{result.name}: rejected by its gate: {failure}" for failure in result.failures]
            done.append(result.as_record())
            if not json:
                print_line(_line(result))
    if json:
        signed = None if signing is None else {"key": signing.id, "trusted": trusted}
        print_json({"compiled": done, "problems": problems, "signed": signed})
    elif done and signing is not None and not trusted:
        print_line(not_trusted(signing))
    print_error("\n".join(problems))
    if problems:
        raise typer.Exit(1)


def _read(files: list[Path]) -> list[Patch]:
    """Read all patches, or raise with the problems of all files."""
    from datetime import UTC, datetime

    from vllm_edit.patch import Patch

    patches, problems = [], []
    now, named = datetime.now(UTC), dict[str, Path]()
    for file in files:
        try:
            patch = Patch.load(file)
        except PatchError as error:
            problems.append(str(error))
            continue
        patches.append(patch)
        problems += [f"{file}: {ended}" for ended in patch.ended(now)]
        first = named.setdefault(patch.name, file)
        if first is not file:
            problems.append(f"{file}: {first} has the name {patch.name} too; rename one of the two")
    if problems:
        raise EditError("\n".join(problems))
    return patches


def _line(outcome: Outcome) -> str:
    """Format the name, gate, size, time and worst health values of a patch."""
    manifest, report = outcome.compiled.manifest, outcome.compiled.report
    parts = [outcome.gate.status, f"rank {manifest.rank}", f"{len(manifest.edits)} edits", f"{outcome.seconds:.1f} s"]
    if report.edits:
        parts.append(f"least margin {min(edit.served_margin for edit in report.edits):.2f} nats")
    if report.norm is not None:
        parts.append(f"‖ΔW‖/‖W‖ {report.norm:.3f}")
    if outcome.not_judged:
        parts.append(f"not judged, because probes are missing: {outcome.not_judged}")
    return f"{outcome.name}  {', '.join(parts)}"
