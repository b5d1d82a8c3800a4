"""The pool of a store's base: asked once, then read from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from vllm_edit.errors import Corrupt, Incompatible
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.pool import Pool
from vllm_edit.invalid import problems_of
from vllm_edit.progress import Progress, silent
from vllm_edit.store.documents import path_of

if TYPE_CHECKING:
    from vllm_edit.models.base import Base
    from vllm_edit.store.store import Store


def stored_pool(store: Store) -> Pool | None:
    """The store's pool; None if it has none. Needs no model.

    Raises:
        Corrupt: the file does not match the digest in it, or holds no pool.
    """
    record = store.document("pool")
    if record is None:
        return None
    try:
        return Pool.from_record(record, Facts.load(tables_folder()))
    except ValidationError as error:
        problem = problems_of(error)[0]
        raise Corrupt(f"{path_of('pool')} holds no pool of facts ({problem}); restore it from a backup") from error


def pool_of(store: Store, base: Base, progress: Progress = silent) -> Pool:
    """The store's pool; if it has none, ask `base` and save the answers.

    Raises:
        Corrupt: as `stored_pool`.
        Incompatible: `base` is not the store's base.
    """
    stored = stored_pool(store)
    if stored is not None:
        return stored
    if store.site().base.departures(base.fingerprint):
        raise Incompatible(f"{base.name} is not the base of {store.url}; give the model that the store was made for")
    from vllm_edit.facts.pooling import ask_pool

    pool = ask_pool(base, Facts.load(tables_folder()), progress)
    store.keep("pool", pool.as_record())
    return pool
