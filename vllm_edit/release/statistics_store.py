"""Creates a store for UltraEdit: the statistics come from given edits, or from edits of facts that the model knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_edit.artefacts.site import check_rank
from vllm_edit.edit import Edit
from vllm_edit.editing.ultraedit.gradient_site import gradient_site
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.known_edits import chosen_edits
from vllm_edit.facts.pooling import ask_pool
from vllm_edit.json_value import JSONValue
from vllm_edit.models.base import Base
from vllm_edit.progress import Progress, silent
from vllm_edit.store.documents import Kind
from vllm_edit.store.store import Store


def create_statistics_store(
    url: str | Path | None,
    base: Base,
    *,
    edits: Sequence[Edit] | None = None,
    passages: Sequence[str] = (),
    max_rank: int | None = None,
    slots: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Store:
    """Create a store for UltraEdit. Only the model is required.

    Args:
        edits: edits whose gradients are measured. Without them the model is asked for the facts of the tables, the
            store saves the answers, and the edits are about known facts.
        passages: ordinary text, for the gates.

    Raises:
        EditError: there are too few edits, or vLLM does not support the rank.
    """
    if max_rank is not None:
        check_rank(max_rank)  # refuse now, not after minutes of work
    documents: dict[Kind, JSONValue] = {}
    if edits is None:
        facts = Facts.load(tables_folder())
        pool = ask_pool(base, facts, progress or silent)
        documents["pool"] = pool.as_record()
        edits = chosen_edits(pool, facts, base, seed=seed, progress=progress or silent)
    made = gradient_site(base, edits, max_rank=max_rank, slots=slots, seed=seed)
    return Store.create(url, made.site, made.statistics.tensors(), passages, documents)
