"""Default locations of a store, its registry and a node's state: the environment, else fixed paths."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_edit.errors import EditError
from vllm_edit.files import Files, LocalFiles

DEFAULT_URL = ".vllm-edit"


def default_url() -> str:
    """`$VLLM_EDIT_STORE`, else a folder in the working directory."""
    return os.environ.get("VLLM_EDIT_STORE") or DEFAULT_URL


def registry_url(place: str, files: Files) -> str:
    """`$VLLM_EDIT_REGISTRY`, else a database in the store's own folder."""
    configured = os.environ.get("VLLM_EDIT_REGISTRY")
    if configured:
        return configured
    if not isinstance(files, LocalFiles):
        raise EditError(f"{place} is not a local folder; set VLLM_EDIT_REGISTRY to the URL of the registry's database")
    return f"sqlite:///{(files.root / 'registry.db').absolute()}"


def state_folder() -> Path:
    """Folder of a node's last known registry states: `$VLLM_EDIT_STATE`, else this user's state folder."""
    if configured := os.environ.get("VLLM_EDIT_STATE"):
        return Path(configured)
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():  # the XDG specification says to ignore a relative path
        try:
            base = Path.home() / ".local" / "state"
        except RuntimeError:
            raise EditError(
                "this user has no home folder; set VLLM_EDIT_STATE to a folder for the last known state"
            ) from None
    return base / "vllm-edit"
