"""A store whose site a sweep chose: the step before the first patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_edit.editing.settings import Progress
from vllm_edit.editing.sweep import TOKENS, Measurement, choose_site
from vllm_edit.errors import EditError, NotFound
from vllm_edit.models.base import Base
from vllm_edit.patch import Edit
from vllm_edit.store.site import Token
from vllm_edit.store.store import Store


def create_by_sweep(
    url: str | Path | None,
    base: Base,
    edits: Sequence[Edit],
    texts: Sequence[str],
    *,
    tokens: Sequence[Token] = TOKENS,
    max_rank: int | None = None,
    slots: int = 16,
    seed: int = 0,
    passages: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Store, Sequence[Measurement]]:
    """A new store at the site that is best for `edits` (see `choose_site`), and what the sweep measured."""
    chosen = choose_site(
        base, edits, texts, tokens=tokens, max_rank=max_rank, slots=slots, seed=seed, progress=progress
    )
    return Store.create(url, chosen.made.site, chosen.made.moment.tensors(), passages), chosen.table


def open_or_create(
    folder: Path,
    base: Base,
    edits: Sequence[Edit],
    texts: Sequence[str],
    passages: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Store, Sequence[Measurement]]:
    """The store in `folder` (then nothing was measured), or a new one. passages: kept where there are none yet.

    Raises:
        EditError: the store there is another base's.
    """
    try:
        store = Store.open(folder)
    except NotFound:
        return create_by_sweep(folder, base, edits, texts, passages=passages, progress=progress)
    if store.site().base != base.fingerprint:
        raise EditError(f"{folder} is a store for another base than {base.name} as it is now; remove it")
    if passages and not store.passages():
        store.keep_passages(passages)
    return store, ()
