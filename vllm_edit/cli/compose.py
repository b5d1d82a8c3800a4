"""`vllm-edit compose`: solve several compiled patches jointly, from their stored factors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.options import JsonOption, ModelOption, StoreOption
from vllm_edit.cli.output import print_error, print_json, print_line, print_table, progress_bar
from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONObject
from vllm_edit.text.quoting import change, quoted

if TYPE_CHECKING:
    from vllm_edit.artefacts.reports import CompositionReport
    from vllm_edit.release.pipeline import Outcome

_SHOWN_PAIRS = 10


def compose(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Compiled patches: capital, capital@4f1c, or full names.")
    ],
    out: Annotated[
        str | None, typer.Option(metavar="NAME", help="The composition's name; default: the members' names.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="first|last|NAME",
            help="Which member wins if members give a fact different targets; by default they are refused.",
        ),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Above the site's rank, use the best approximation; report its energy.")
    ] = False,
    damping: Annotated[
        float | None, typer.Option(min=0, help="λ relative to a key group's mean k̄ᵀC⁻¹k̄; default: the members'.")
    ] = None,
    model: ModelOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Solve compiled patches of one site jointly, store the result and run its gate with the model.

    Later names win with --policy last: a tenant's own patch over a shared one. A composition that fails its gate is
    stored as rejected, and exits 1.
    """
    from vllm_edit.composition.compose import compose as composed
    from vllm_edit.ike.demonstrations import with_members_demonstrations
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    resolved = [opened.resolve(name) for name in names]
    if len(set(resolved)) == 1 and out is None:
        raise EditError(
            f"a composition of one patch would get the patch's own name, {names[0]}: give two patches or more, or "
            "another name with --out"
        )
    members = [opened.load(name) for name in resolved]
    started = time.perf_counter()
    made = composed(members, out, site=opened.site(), policy=policy, truncate=truncate, damping=damping)
    seconds = time.perf_counter() - started
    made = with_members_demonstrations(made, sorted(members, key=lambda member: member.name))

    from vllm_edit.cli.model_inputs import base_of  # only now: a composition that algebra refuses needs no model
    from vllm_edit.ike.bank import Bank
    from vllm_edit.release.pipeline import Pipeline

    pipeline = Pipeline(opened, base_of(opened, model), Bank())
    with progress_bar(made.manifest.patch) as progress:
        outcome = pipeline.judge(made, seconds, progress)
    if json:
        print_json(_record(outcome))
    elif outcome.compiled.algebra is not None:
        _print(outcome, outcome.compiled.algebra)
    print_error("\n".join(f"{outcome.name}: rejected by its gate: {failure}" for failure in outcome.failures))
    if not outcome.accepted:
        raise typer.Exit(1)


def _record(outcome: Outcome) -> JSONObject:
    manifest, algebra = outcome.compiled.manifest, outcome.compiled.record
    return {
        "name": outcome.name,
        "status": outcome.gate.status,
        "failures": list(outcome.failures),
        "not_judged": outcome.not_judged,
        "judged_by": outcome.gate.judged_by,
        "members": list(manifest.members),
        "edits": len(manifest.edits),
        "rank": manifest.rank,
        "settings": manifest.settings,
        "algebra": {key: value for key, value in algebra.items() if key != "judged_by"},
    }


def _print(outcome: Outcome, algebra: CompositionReport) -> None:
    """Print one line, then the edits that lost a conflict, then the pairs that interfere most."""
    from vllm_edit.composition.conflicts import decided_conflicts
    from vllm_edit.names import short

    manifest = outcome.compiled.manifest
    parts = [
        f"{outcome.gate.status} by the model",
        f"rank {manifest.rank}",
        f"{len(manifest.edits)} edits of {len(manifest.members)} patches",
        f"solved in {outcome.seconds:.2f} s",
        f"‖Δ‖ × {algebra.norm_growth:.2f}",
    ]
    if algebra.kept_energy < 1:
        parts.append(f"truncated, {algebra.kept_energy:.2%} of the energy kept")
    if outcome.not_judged:
        parts.append(f"not judged, because probes are missing: {outcome.not_judged}")
    print_line(f"{outcome.name}  {', '.join(parts)}")
    for conflict in decided_conflicts(manifest):
        print_line(
            f"{change(conflict.prompt, conflict.target)} of {short(conflict.left_out)} is left out: "
            f"{short(conflict.winner)} says {quoted(conflict.kept_target)}"
        )
    if shown := algebra.interference[:_SHOWN_PAIRS]:
        print_line()
        print_table(("SUBJECT", "SUBJECT", "COSINE"), [(*pair.subjects, f"{pair.cosine:.3f}") for pair in shown])
        if algebra.pairs is not None and algebra.pairs > len(shown):
            print_line(f"the {len(shown)} highest of {algebra.pairs} pairs")
