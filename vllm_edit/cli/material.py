"""What commands need of a base model besides its weights: the shipped one brings it, others get it from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_edit.errors import EditError
from vllm_edit.text_files import read_text

if TYPE_CHECKING:
    from vllm_edit.ike.bank import Bank
    from vllm_edit.models.base import Base
    from vllm_edit.patch import Edit
    from vllm_edit.store.store import Store

SHIPPED = "atlas"


def load_base(model: str) -> Base:
    """The base model on this machine's best device, without the library's own progress bar."""
    from transformers.utils import logging

    from vllm_edit.models.base import Base

    logging.disable_progress_bar()
    try:
        return Base.load(model)
    finally:
        logging.enable_progress_bar()


def texts_of(model: str, file: Path | None) -> list[str]:
    """Ordinary text in the model's languages: for second moments."""
    if file is not None:
        texts = [line for line in read_text(file).splitlines() if line.strip()]
        if not texts:
            raise EditError(f"{file} holds no text; expected one passage per line")
        return texts
    if model != SHIPPED:
        raise EditError(
            f"a site of {model} needs ordinary text to be measured on: give --texts FILE, a passage per line"
        )
    from vllm_edit import atlas

    return atlas.texts()


def given_text(model: str, file: Path | None, seed: int) -> tuple[list[str], list[str]] | None:
    """Passages for the gates, and text for the second moment: of a file some lines and the others; atlas has both.

    None for other models: what is not given they write themselves.
    """
    from vllm_edit.store.passages import hold_out

    if file is not None:
        return hold_out(texts_of(model, file), seed)
    if model != SHIPPED:
        return None
    from vllm_edit import atlas

    return atlas.passages(), atlas.texts()


def passages_of(model: str, file: Path | None) -> list[str]:
    """Ordinary text for the gates alone; none where none is known."""
    from vllm_edit.store.passages import cut

    if file is not None:
        return cut(texts_of(model, file))
    if model != SHIPPED:
        return []
    from vllm_edit import atlas

    return atlas.passages()


def given_edits(model: str, file: Path | None, seed: int) -> list[Edit] | None:
    """Edits on which layer and token are chosen; no evaluation may use them again. None: of what the model knows."""
    if file is not None:
        from vllm_edit.patch import Patch

        return list(Patch.load(file).edits)
    if model != SHIPPED:
        return None
    from vllm_edit import atlas

    return atlas.sweep_edits(seed)


def network_of(model: str, folder: Path | None) -> Path:
    """The folder of the hypernetwork that edits the model; only the shipped one brings its own."""
    if folder is not None:
        return folder
    if model != SHIPPED:
        raise EditError(
            f"a store for mend on {model} needs its network: give --network FOLDER (see vllm-edit hypernet train)"
        )
    from vllm_edit.atlas.mend import network_folder

    return network_folder()


def bank_of(store: Store, file: Path | None) -> Bank:
    """Facts that the store's model knows, of which IKE's demonstrations are made.

    A file's; all facts of atlas, which was trained on them; else those of the store's pool that nothing is judged on.
    """
    from vllm_edit.ike.bank import Bank

    if file is not None:
        return Bank.load(file)
    if store.site().model == SHIPPED:
        from vllm_edit import atlas

        return Bank.from_records(atlas.bank())
    from vllm_edit.facts.pool import bank_records
    from vllm_edit.facts.stored_pool import stored_pool

    pool = stored_pool(store)
    return Bank() if pool is None else Bank.from_records(bank_records(pool.side("tune")))
