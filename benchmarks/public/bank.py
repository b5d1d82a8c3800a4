"""IKE's bank: the facts of the tables that the model knows, on the side that nothing is judged on."""

from __future__ import annotations

from vllm_edit.facts.pool import bank_records
from vllm_edit.facts.stored_pool import pool_of
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import Base
from vllm_edit.progress import Progress
from vllm_edit.store.store import Store


def bank_of(store: Store, base: Base, progress: Progress) -> Bank:
    """The bank of the store's pool; where it keeps none, the model is asked now, and the answer kept."""
    return Bank.from_records(bank_records(pool_of(store, base, progress).side("tune")))
