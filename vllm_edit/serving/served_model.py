"""Resolves a model's name to its folder or hub id for vLLM, and to its readable name for clients."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from vllm_edit.errors import EditError
from vllm_edit.shipped import weights_folder


def served_model(named: str) -> tuple[str, str]:
    """(the folder or id that vLLM loads, the base model's name for clients) of `atlas`, a folder or a hub id."""
    if named == "atlas":
        return str(weights_folder()), "atlas"
    folder = Path(named)
    return (str(folder.resolve()), folder.resolve().name) if folder.is_dir() else (named, named)


def check_not_a_base(tenant: str, base_names: Collection[str]) -> None:
    """Raise `EditError` if a new tenant would have one of the base model's names in requests."""
    if tenant in base_names:
        raise EditError(f"{tenant} is the base model's name in requests, so no tenant can have it; choose another name")
