"""`vllm-edit store`: make a store with its site, and say what is in one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vllm_edit.cli.output import JsonOption, StoreOption, print_fields, print_json, print_table, progress_bar
from vllm_edit.errors import EditError, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_edit.editing.sweep import Measurement
    from vllm_edit.store.site import Site
    from vllm_edit.store.store import Store

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The store: compiled patches of one site of one base model.",
)

_AUTO = "auto"


@app.command()
def init(
    model: Annotated[str, typer.Option(help="atlas (shipped), a model folder, or a hub id.")] = "atlas",
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="auto|NUMBER",
            help="auto tries layers and tokens on edits of its own. Default: auto where there are such edits "
            "(atlas, or --edits), else the published depth.",
        ),
    ] = None,
    token: Annotated[
        Literal["subject_last", "last"] | None,
        typer.Option(help="Edit at the subject's last token or at the prompt's; auto tries both."),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", "--max-rank", help="Most rank of a patch; default 16.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Patches in one batch of the engine.")] = 16,
    texts: Annotated[Path | None, typer.Option(help="Ordinary text, a passage per line; atlas has its own.")] = None,
    edits: Annotated[Path | None, typer.Option(help="Patch file with edits for auto; atlas has its own.")] = None,
    seed: Annotated[int, typer.Option(help="Of the contexts and the edits tried.")] = 0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Choose and fix the site (layer, token, statistics, damping, rank) of a new store."""
    wanted = _layer(layer)
    _refuse_existing(store)
    from vllm_edit.cli.material import SHIPPED, load_base, sweep_edits_of, texts_of
    from vllm_edit.editing.sites import fixed_site
    from vllm_edit.editing.sweep import TOKENS
    from vllm_edit.store.store import Store
    from vllm_edit.swept_store import create_by_sweep

    started = time.perf_counter()
    text = texts_of(model, texts)
    sweeps = wanted == _AUTO or (wanted is None and (model == SHIPPED or edits is not None))
    tried = sweep_edits_of(model, edits, seed) if sweeps else []
    # A folder's absolute path, so that later commands find the model from anywhere.
    base = load_base(model if model == SHIPPED or not Path(model).is_dir() else str(Path(model).absolute()))
    table: Sequence[Measurement] = ()
    with progress_bar("store init") as progress:
        if sweeps:
            tokens = TOKENS if token is None else (token,)
            opened, table = create_by_sweep(
                store, base, tried, text, tokens=tokens, max_rank=rank, slots=slots, seed=seed, progress=progress
            )
        else:
            made = fixed_site(
                base,
                text,
                layer=wanted if isinstance(wanted, int) else None,
                token=token or "subject_last",
                max_rank=rank,
                slots=slots,
                seed=seed,
                progress=progress,
            )
            opened = Store.create(store, made.site, made.moment.tensors())
    seconds = round(time.perf_counter() - started, 3)
    if json:
        tried_ = [measured.as_record() for measured in table]
        print_json(_site(opened, opened.site()) | {"seconds": seconds, "tried": tried_})
        return
    if table:
        _print_tried(table)
    print_fields(_site(opened, opened.site()) | {"seconds": f"{seconds:.0f}"})


@app.command()
def status(store: StoreOption = None, json: JsonOption = False) -> None:
    """Say what a store holds: its site, patches and tenants."""
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    entries = [opened.entry(name) for name in opened.names()]
    gate = {state: sum(entry.status == state for entry in entries) for state in ("accepted", "rejected", "ungated")}
    tenants = opened.registry.tenants()
    counts = {"patches": len(entries), **gate, "tenants": len(tenants), "generation": opened.registry.generation()}
    told = _site(opened, opened.site()) | counts
    print_json(told) if json else print_fields(told)


def _layer(text: str | None) -> int | str | None:
    if text in (None, _AUTO):
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"expected auto or a layer's number, got {text!r}", param_hint="--layer")
    return int(text)


def _refuse_existing(url: str | None) -> None:
    """Before minutes of work: a store has one site for good."""
    from vllm_edit.store.store import Store

    try:
        opened = Store.open(url)
    except NotFound:
        return
    site = opened.site()
    raise EditError(
        f"{opened.url} has a site already ({site.model}, layer {site.layer}, {site.token}), and a store has one for "
        "good; name another with --store, or remove the folder"
    )


def _site(store: Store, site: Site) -> dict[str, Any]:
    return {
        "store": store.url,
        "model": site.model,
        "site": site.digest,
        "module": ", ".join(site.modules),
        "layer": site.layer,
        "token": site.token,
        "rank": site.max_rank,
        "slots": site.slots,
        "damping": site.damping,
        "contexts": len(site.contexts),
        "moment_vectors": site.second_moment_count,
    }


def _print_tried(table: Sequence[Measurement]) -> None:
    columns = ("TOKEN", "LAYER", "DAMPING", "EDITS", "RELIABILITY", "PARAPHRASE", "LOCALITY", "SAME SUBJECT", "SCORE")
    rows = [
        (
            one.token,
            one.layer,
            f"{one.damping:g}",
            "together" if one.joint else "one by one",
            *(f"{share:.3f}" for share in (one.reliability, one.paraphrase, one.locality)),
            "–" if one.locality_subject is None else f"{one.locality_subject:.3f}",
            f"{one.score:.3f}",
        )
        for one in table
    ]
    print_table(columns, rows)
    print()
