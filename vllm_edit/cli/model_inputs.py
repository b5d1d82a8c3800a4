"""Inputs for a base model besides its weights (texts, edits, networks, facts): shipped for atlas, else from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_edit.errors import EditError
from vllm_edit.text.utf8 import read_text

if TYPE_CHECKING:
    from vllm_edit.edit import Edit
    from vllm_edit.ike.bank import Bank
    from vllm_edit.models.base import Base
    from vllm_edit.store.store import Store

SHIPPED = "atlas"


def load_base(model: str) -> Base:
    """Load the base model on this machine's best device, without the library's own progress bar."""
    from transformers.utils import logging

    from vllm_edit.models.base import Base

    logging.disable_progress_bar()
    try:
        return Base.load(model)
    finally:
        logging.enable_progress_bar()


def base_of(store: Store, model: str | None) -> Base:
    """Load the store's base model, from `model` if it is given.

    Raises:
        EditError: the model is no longer where the store was made, or another problem of loading.
    """
    made_at = store.site().model
    if model is None and Path(made_at).is_absolute() and not Path(made_at).is_dir():
        raise EditError(f"the store's base model is no longer at {made_at}: name its folder with --model")
    return load_base(model or made_at)


def texts_of(model: str, file: Path | None) -> list[str]:
    """Return ordinary text in the model's languages, for second moments."""
    if file is not None:
        texts = [line for line in read_text(file).splitlines() if line.strip()]
        if not texts:
            raise EditError(f"{file} holds no text; expected one passage per line")
        return texts
    if model != SHIPPED:
        raise EditError(
            f"a site of {model} needs ordinary text for its statistics: give --texts FILE, a passage per line"
        )
    from vllm_edit import atlas

    return atlas.texts()


def given_text(model: str, file: Path | None, seed: int) -> tuple[list[str], list[str]] | None:
    """Return passages for the gates and text for the second moment: a split of the file's lines, or atlas's own.

    Returns:
        None for other models without a file: they generate text themselves.
    """
    from vllm_edit.store.gate_texts import hold_out

    if file is not None:
        return hold_out(texts_of(model, file), seed)
    if model != SHIPPED:
        return None
    from vllm_edit import atlas

    return atlas.passages(), atlas.texts()


def passages_of(model: str, file: Path | None) -> list[str]:
    """Return ordinary text for the gates; empty if there is none for the model."""
    from vllm_edit.store.gate_texts import cut

    if file is not None:
        return cut(texts_of(model, file))
    if model != SHIPPED:
        return []
    from vllm_edit import atlas

    return atlas.passages()


def given_edits(model: str, file: Path | None, seed: int) -> list[Edit] | None:
    """Return the edits that choose layer and token; evaluations must not reuse them. None: use known facts."""
    if file is not None:
        from vllm_edit.patch import Patch

        return list(Patch.load(file).edits)
    if model != SHIPPED:
        return None
    from vllm_edit import atlas

    return atlas.sweep_edits(seed)


def network_of(model: str, method: str, folder: Path | None) -> Path:
    """Return the folder of the method's network for the model; only the shipped model includes one."""
    if folder is not None:
        return folder
    if model != SHIPPED:
        raise EditError(
            f"a store for {method} on {model} needs its network: give --network FOLDER (see vllm-edit hypernet train)"
        )
    from vllm_edit.atlas.hypernetworks import NETWORK_FOLDERS

    return NETWORK_FOLDERS[method]


def bank_of(store: Store, file: Path | None) -> Bank:
    """Return facts that the store's model knows, for IKE's demonstrations: from the file, else the store's."""
    from vllm_edit.ike.bank import Bank
    from vllm_edit.release.stored_bank import stored_bank

    return stored_bank(store) if file is None else Bank.load(file)
