"""The bank of a store: facts that its base knows, for the demonstrations of IKE."""

from __future__ import annotations

from vllm_edit import atlas
from vllm_edit.facts.pool import bank_records
from vllm_edit.facts.stored_pool import stored_pool
from vllm_edit.ike.bank import Bank
from vllm_edit.models.base import SHIPPED
from vllm_edit.store.store import Store


def stored_bank(store: Store) -> Bank:
    """The training facts of the embedded model; for other models the store's pool, without facts of evaluations.

    The bank is empty if the store has no pool.
    """
    if store.site().model == SHIPPED:
        return Bank.from_records(atlas.bank())
    pool = stored_pool(store)
    return Bank() if pool is None else Bank.from_records(bank_records(pool.side("tune")))
