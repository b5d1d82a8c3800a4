"""Creates a store: chooses the site of a base model; missing texts and facts come from the model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_edit.artefacts.site import Token, check_rank
from vllm_edit.deltas.linear import linear_shape
from vllm_edit.edit import Edit
from vllm_edit.editing.second_moment import check_texts
from vllm_edit.editing.site.sites import fixed_site, module_at, over_depth
from vllm_edit.editing.site.sweep import TOKENS, choose_site
from vllm_edit.editing.site.trials import Measurement
from vllm_edit.errors import EditError, NotFound
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.known_edits import SWEEP_EDITS, chosen_edits
from vllm_edit.facts.pool import Pool
from vllm_edit.facts.pooling import ask_pool
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module
from vllm_edit.models.own_text import write_texts
from vllm_edit.progress import Progress, silent
from vllm_edit.store.documents import Kind
from vllm_edit.store.gate_texts import hold_out
from vllm_edit.store.store import Store

VECTORS = 10
"""Tokens of text per input of the edited module; with fewer, small second moments are mostly noise."""
_HELD_OUT = 1.12
"""Factor of extra text that the model writes: a tenth of the texts become the gates' passages."""
_LEAST_EDITS = 8
"""Minimum number of edits to compare layers."""


@dataclass(frozen=True)
class Created:
    """A new store.

    Attributes:
        table: the sweep's measurements, empty without a sweep.
        pool: the facts that the base knows, None if it was not asked.
        why: a readable reason for the choice of the site.
    """

    store: Store
    table: Sequence[Measurement]
    pool: Pool | None
    why: str


def create_store(
    url: str | Path | None,
    base: Base,
    *,
    texts: Sequence[str] | None = None,
    passages: Sequence[str] = (),
    edits: Sequence[Edit] | None = None,
    layer: int | None = None,
    token: Token | None = None,
    depth: int = 1,
    max_rank: int | None = None,
    slots: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Created:
    """Create a store for `base`. Only the model is required.

    Args:
        texts: ordinary text for the second moment; without it the model writes `texts` and `passages`, and the store
            saves them.
        passages: other ordinary text, for the gates.
        edits: edits to choose the site by. Without them the model is asked for the facts of the tables, the store saves
            the answers, and the edits are about known facts. If the model knows too few, the site is at the published
            depth.
        layer: if given, no sweep is run.
        token: if given, only sites at this token are tried.
        depth: number of layers of the site, counted downwards from the given or chosen layer, or all layers below it
            if there are fewer; several are for MEMIT and AlphaEdit.

    Raises:
        EditError: the model has no such layer, vLLM does not support the rank, the texts are too short, or the model
            writes no text.
    """
    if layer is not None:
        module_at(base, layer)  # refuse now, not after minutes of work
    if max_rank is not None:
        check_rank(max_rank)
    documents: dict[Kind, JSONValue] = {}
    if texts is not None:
        narrowest = min(base.layout.down, key=lambda module: linear_shape(find_module(base.model, module))[1])
        check_texts(base, narrowest if layer is None else module_at(base, layer), texts)
    else:
        written = write_texts(base, _vectors(base), seed=seed, progress=progress)
        passages, texts = hold_out(written, seed)
        documents["texts"] = texts
    pool, why = None, "given"
    if edits is None:
        facts = Facts.load(tables_folder())
        pool = ask_pool(base, facts, progress or silent)
        documents["pool"] = pool.as_record()
        if layer is None:
            edits, why = _edits_of(pool, facts, base, seed, progress or silent)
    if layer is None and edits:
        tokens = TOKENS if token is None else (token,)
        store, table = create_by_sweep(
            url,
            base,
            edits,
            texts,
            tokens=tokens,
            depth=depth,
            max_rank=max_rank,
            slots=slots,
            seed=seed,
            passages=passages,
            documents=documents,
            progress=progress,
        )
        return Created(store, table, pool, f"tried on {len(edits)} edits")
    made = fixed_site(
        base,
        texts,
        layer=layer,
        token=token or "subject_last",
        max_rank=max_rank,
        slots=slots,
        seed=seed,
        progress=progress,
    )
    layered = over_depth(base, made, depth, texts, progress=progress)
    store = Store.create(url, layered.site, layered.moments.tensors(), passages, documents)
    return Created(store, (), pool, why)


def create_by_sweep(
    url: str | Path | None,
    base: Base,
    edits: Sequence[Edit],
    texts: Sequence[str],
    *,
    tokens: Sequence[Token] = TOKENS,
    depth: int = 1,
    max_rank: int | None = None,
    slots: int = 16,
    seed: int = 0,
    passages: Sequence[str] = (),
    documents: Mapping[Kind, JSONValue] | None = None,
    progress: Progress | None = None,
) -> tuple[Store, Sequence[Measurement]]:
    """A new store at the site that is best for `edits` (see `choose_site`), and the sweep's measurements.

    depth: number of layers of the site, counted downwards from the best layer.
    """
    chosen = choose_site(
        base, edits, texts, tokens=tokens, max_rank=max_rank, slots=slots, seed=seed, progress=progress
    )
    tried = [_plain(row.as_record()) for row in chosen.table]
    content: dict[Kind, JSONValue] = {**(documents or {}), "tried": tried}
    layered = over_depth(base, chosen.made, depth, texts, progress=progress)
    store = Store.create(url, layered.site, layered.moments.tensors(), passages, content)
    return store, chosen.table


def opened(folder: Path, base: Base) -> Store:
    """The store in `folder`.

    Raises:
        NotFound: there is no store.
        EditError: the store is for another base.
    """
    store = Store.open(folder)
    if store.site().base.departures(base.fingerprint):
        raise EditError(f"{folder} is a store for another base than {base.name} as it is now; remove it")
    return store


def open_or_create(
    folder: Path,
    base: Base,
    edits: Sequence[Edit],
    texts: Sequence[str],
    passages: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Store, Sequence[Measurement]]:
    """Open the store in `folder` (without a sweep), or create it. `passages` are saved if the store has none.

    Raises:
        EditError: the store is for another base.
    """
    try:
        store = opened(folder, base)
    except NotFound:
        return create_by_sweep(folder, base, edits, texts, passages=passages, progress=progress)
    if passages and not store.passages():
        store.keep_passages(passages)
    return store, ()


def _edits_of(pool: Pool, facts: Facts, base: Base, seed: int, progress: Progress) -> tuple[list[Edit], str]:
    """Edits to choose the site by; if the base knows too few facts, no edits and the reason."""
    asked = sum(pool.asked.values())
    known = f"the model gives {len(pool.known):,} of {asked:,} facts that it was asked for"
    if len(pool.known) < SWEEP_EDITS:
        return [], f"published depth: {known}; {SWEEP_EDITS} are needed to try sites on (or --edits PATCH.yaml)"
    edits = chosen_edits(pool, facts, base, seed=seed, progress=progress)
    if len(edits) < _LEAST_EDITS:
        return [], f"published depth: {known}, which make {len(edits)} edits to try sites on; {_LEAST_EDITS} are needed"
    return edits, ""


def _vectors(base: Base) -> int:
    """Number of tokens for the model to write: enough for the widest editable module and for the gates."""
    widest = max(linear_shape(find_module(base.model, module))[1] for module in base.layout.down)
    return math.ceil(VECTORS * widest * _HELD_OUT)


def _plain(record: Mapping[str, JSONValue]) -> JSONObject:
    """Make a record JSON-able: numbers that are not finite become None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
