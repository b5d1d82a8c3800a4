"""`vllm-edit store`: create a store with its site, and show a store's content."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.model_inputs import SHIPPED
from vllm_edit.cli.options import JsonOption, StoreOption, seed_of
from vllm_edit.cli.output import print_fields, print_json, print_line, print_table, progress_bar
from vllm_edit.errors import EditError, NotFound
from vllm_edit.json_value import JSONObject, JSONValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_edit.artefacts.site import Site
    from vllm_edit.facts.pool import Pool
    from vllm_edit.models.base import Base
    from vllm_edit.store.store import Store

app = group("The store: compiled patches of one site of one base model.")

_AUTO = "auto"
_MEMIT_LAYERS = 3
"""Number of layers of a site for memit, unless a range is given."""

TextsOption = Annotated[
    Path | None,
    typer.Option(help="Ordinary text, a passage per line; default: the model generates it, atlas has its own."),
]


@app.command()
def init(
    model: Annotated[str, typer.Option(help="atlas (shipped), a model folder, or a hub id.")] = "atlas",
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="auto|NUMBER|FIRST-LAST",
            help="auto, the default, tries layers and tokens on edits of facts that the model knows; if it knows too "
            "few, auto takes the published depth. memit takes a range of layers, by default the chosen layer and the "
            "two layers below it.",
        ),
    ] = None,
    token: Annotated[
        Literal["subject_last", "last"] | None,
        typer.Option(help="Edit at the subject's last token or at the prompt's; default: auto tries both."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", "--max-rank", help="Maximum rank of a patch; default 16.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Maximum number of patches in one batch of the engine.")] = 16,
    texts: TextsOption = None,
    edits: Annotated[
        Path | None,
        typer.Option(
            help="Patch file with edits for auto and for ultraedit; default: edits of facts that the model knows."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(parser=seed_of, metavar="N", help="Seed of contexts and tried edits.")] = 0,
    method: Annotated[
        Literal["rome", "memit", "mend", "ke", "ultraedit"],
        typer.Option(
            help="rome: one module, for rome, ft and lora. memit: modules of several layers, for memit and alphaedit. "
            "mend, ke: the matrices that a hypernetwork edits. ultraedit: down projections of the last three layers."
        ),
    ] = "rome",
    network: Annotated[Path | None, typer.Option(help="Folder of the network; atlas has its own.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Choose and fix the site (layer, token, statistics, damping, rank) of a new store."""
    wanted, depth = _layers(layer, method)
    _refuse_existing(store)
    if method in ("mend", "ke"):
        given = {"--layer": layer, "--token": token, "--edits": edits}
        for option in (name for name, value in given.items() if value is not None):
            raise typer.BadParameter(f"the site of {method} is what its network was trained for", param_hint=option)
        _init_network(model, method, network, texts, rank, slots, store, json)
        return
    if method == "ultraedit":
        for option in (name for name, value in {"--layer": layer, "--token": token}.items() if value is not None):
            raise typer.BadParameter("the site of ultraedit is at every token of the last layers", param_hint=option)
    if network is not None:
        raise typer.BadParameter("only a store for mend or ke has a network: add --method", param_hint="--network")
    from vllm_edit.cli.model_inputs import given_edits, given_text

    started = time.perf_counter()
    text, tried = given_text(model, texts, seed), given_edits(model, edits, seed)
    base = _servable(model)
    from vllm_edit.release.statistics_store import create_statistics_store
    from vllm_edit.release.swept_store import create_store

    if method == "ultraedit":
        passages = [] if text is None else text[0]
        with progress_bar("store init") as progress:
            opened = create_statistics_store(
                store, base, edits=tried, passages=passages, max_rank=rank, slots=slots, seed=seed, progress=progress
            )
        fields = _site(opened, opened.site()) | {"seconds": round(time.perf_counter() - started, 3)}
        print_json(fields) if json else print_fields(fields)
        return
    with progress_bar("store init") as progress:
        created = create_store(
            store,
            base,
            texts=None if text is None else text[1],
            passages=() if text is None else text[0],
            edits=tried,
            layer=wanted,
            token=token,
            depth=depth,
            max_rank=rank,
            slots=slots,
            seed=seed,
            progress=progress,
        )
    seconds = round(time.perf_counter() - started, 3)
    table = [measured.as_record() for measured in created.table]
    fields = _site(created.store, created.store.site()) | {"chosen": created.why}
    if json:
        pool = None if created.pool is None else _pool(created.pool)
        print_json(fields | {"pool": pool, "seconds": seconds, "tried": table})
        return
    _print_tried(table)
    known = {} if created.pool is None else {"pool": _pool_line(created.pool)}
    print_fields(fields | known | {"seconds": f"{seconds:.0f}"})


def _init_network(
    model: str,
    method: str,
    network: Path | None,
    texts: Path | None,
    rank: int | None,
    slots: int,
    store: str | None,
    json: bool,
) -> None:
    """Create a store for a network of the method; text is only for the gates."""
    from vllm_edit.cli.model_inputs import network_of, passages_of
    from vllm_edit.editing.network_files import load, network_site
    from vllm_edit.store.store import Store

    folder = network_of(model, method, network)
    trained, card = load(folder)
    if card.method != method:
        raise EditError(f"the network in {folder} is of {card.method}, not of {method}: add --method {card.method}")
    site = network_site(_servable(model), trained, card, max_rank=rank, slots=slots)
    opened = Store.create(store, site, trained.tensors(), passages_of(model, texts))
    fields = _site(opened, site)
    print_json(fields) if json else print_fields(fields)


def _servable(model: str) -> Base:
    """Load the base model, and check that vLLM can serve it with LoRA; the shipped model needs no check."""
    from vllm_edit.cli.model_inputs import load_base

    base = load_base(_place(model))
    if model != SHIPPED and base.folder is not None:
        from vllm_edit.engine.lora_support import check_lora_support

        check_lora_support(base.folder)
    return base


def _place(model: str) -> str:
    """Make a folder's path absolute, so that later commands find it from any directory; other names stay the same."""
    return str(Path(model).absolute()) if model != SHIPPED and Path(model).is_dir() else model


@app.command()
def passages(texts: TextsOption = None, store: StoreOption = None, json: JsonOption = False) -> None:
    """Add passages to a store without any: ordinary text on which gates measure the drift of perplexity.

    The text should differ from the text of the site's statistics. Passages cannot be replaced.
    """
    from vllm_edit.cli.model_inputs import passages_of
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    model = opened.site().model
    found = passages_of(model, texts)
    if not found:
        raise EditError(f"there is no text for {model}: give --texts FILE, a passage per line")
    opened.keep_passages(found)
    fields = {"store": opened.url, "passages": len(found)}
    print_json(fields) if json else print_fields(fields)


@app.command("keep-settings")
def keep_settings(
    model: Annotated[
        str | None, typer.Option(help="The base: atlas, a folder, or a hub id; default: the site's.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Add the digest of the base's settings files to a store from a version without this digest.

    The settings files are tokenizer_config.json, added_tokens.json and generation_config.json. They should be unchanged
    since the store was created. From then on a server refuses a base whose settings files differ.
    """
    from vllm_edit.models.base import Base
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    if opened.base().settings is not None:
        raise EditError(f"{opened.url} has a digest of its base's settings already")
    base = Base.load(model or opened.site().model)
    if problems := opened.base().problems(base.fingerprint):
        raise EditError(f"{base.name} is not the base of {opened.url}: its {'; its '.join(problems)}")
    opened.keep("settings", base.fingerprint.settings)
    fields = {"store": opened.url, "model": base.name, "settings": base.fingerprint.settings}
    print_json(fields) if json else print_fields(fields)


@app.command()
def status(store: StoreOption = None, json: JsonOption = False) -> None:
    """Show a store's site and the sweep that chose it, patches, tenants, and the facts that the model knows."""
    from vllm_edit.facts.stored_pool import stored_pool
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    entries = [opened.entry(name) for name in opened.names()]
    gate = {state: sum(entry.status == state for entry in entries) for state in ("accepted", "rejected", "ungated")}
    tenants = opened.registry.tenants()
    counts = {"patches": len(entries), **gate, "tenants": len(tenants), "generation": opened.registry.generation()}
    fields = _site(opened, opened.site()) | counts
    pool, document = stored_pool(opened), opened.document("tried")
    tried: list[JSONObject] = document if isinstance(document, list) else []
    if json:
        print_json(fields | {"pool": None if pool is None else _pool(pool), "tried": tried})
        return
    _print_tried(tried)
    print_fields(fields | ({} if pool is None else {"pool": _pool_line(pool)}))


def _layers(text: str | None, method: str) -> tuple[int | None, int]:
    """The last layer of the site, None for auto, and the number of its layers."""
    default = _MEMIT_LAYERS if method == "memit" else 1
    if text is None or text == _AUTO:
        return None, default
    found = re.fullmatch("(?:([0-9]+)-)?([0-9]+)", text)
    if found is None:
        kinds = "auto, a layer's number or a range of layers" if method == "memit" else "auto or a layer's number"
        raise typer.BadParameter(f"expected {kinds}, got {text!r}", param_hint="--layer")
    first, last = found.groups()
    if first and method != "memit":
        raise typer.BadParameter("only a store for memit has several layers: add --method memit", param_hint="--layer")
    if first and int(first) > int(last):
        raise typer.BadParameter(f"expected the first layer before the last, got {text!r}", param_hint="--layer")
    return int(last), int(last) - int(first) + 1 if first else 1


def _refuse_existing(url: str | None) -> None:
    """Raise `EditError` for an existing store, before minutes of work: a store's site is fixed."""
    from vllm_edit.store.store import Store

    try:
        opened = Store.open(url)
    except NotFound:
        return
    site = opened.site()
    raise EditError(
        f"{opened.url} has a site already ({site.model}, layer {site.layer}), and a store's site is fixed; "
        "name another store with --store, or remove the folder"
    )


def _site(store: Store, site: Site) -> dict[str, object]:
    fields: dict[str, object] = {
        "store": store.url,
        "model": site.model,
        "site": site.digest,
        "module": ", ".join(site.modules),
        "layer": site.layer,
        "rank": site.max_rank,
        "slots": site.slots,
        "passages": len(store.passages()),
    }
    if site.thinking is not None:
        fields |= {"thinking": site.thinking}
    if site.network is not None:
        return fields | {"network": site.network}
    if site.statistics is not None:
        return fields | {"statistics": site.statistics}
    return fields | {
        "token": site.token,
        "damping": site.damping,
        "contexts": len(site.contexts),
        "moment_vectors": site.second_moment_count,
    }


def _pool(pool: Pool) -> JSONObject:
    """Return the numbers of known and asked facts, in total and by relation."""
    relations = {
        relation: {"known": known, "asked": pool.asked[relation]} for relation, known in sorted(pool.sizes.items())
    }
    return {"known": len(pool.known), "asked": sum(pool.asked.values()), "relations": relations}


def _pool_line(pool: Pool) -> str:
    some = sum(known > 0 for known in pool.sizes.values())
    return f"{len(pool.known):,} known facts of {some} relations, {sum(pool.asked.values()):,} asked"


def _print_tried(tried: Sequence[Mapping[str, JSONValue]]) -> None:
    """Print the sweep's measurements (`Measurement.as_record`), if there are any."""
    if not tried:
        return
    shares = ("reliability", "paraphrase", "locality", "locality_subject", "score")
    columns = ("TOKEN", "LAYER", "DAMPING", "MARGIN", "EDITS", *(share.upper().replace("_", " ") for share in shares))
    rows = [
        (
            trial["token"],
            trial["layer"],
            f"{trial['damping']:g}",
            f"{trial['margin']:g}" if "margin" in trial else "–",
            f"{trial.get('edits', '')} {'together' if trial['joint'] else 'one by one'}",
            *("–" if trial[share] is None else f"{trial[share]:.3f}" for share in shares),
        )
        for trial in tried
    ]
    print_table(columns, rows)
    print_line()
