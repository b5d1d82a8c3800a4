"""Default locations of a store, its registry and a node's state: the environment, else fixed paths."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_state_path
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from vllm_edit.errors import EditError
from vllm_edit.files import Files, LocalFiles


class _Configured(BaseSettings):
    """The locations that the environment names; an empty variable counts as unset."""

    model_config = SettingsConfigDict(case_sensitive=True, env_ignore_empty=True)

    store: str = Field(".vllm-edit", validation_alias="VLLM_EDIT_STORE")
    registry: str | None = Field(None, validation_alias="VLLM_EDIT_REGISTRY")
    state: Path | None = Field(None, validation_alias="VLLM_EDIT_STATE")
    signers: Path | None = Field(None, validation_alias="VLLM_EDIT_SIGNERS")


def default_url() -> str:
    """`$VLLM_EDIT_STORE`, else a folder in the working directory."""
    return _Configured().store


def registry_url(place: str, files: Files) -> str:
    """`$VLLM_EDIT_REGISTRY`, else a database in the store's own folder.

    Raises:
        EditError: the store is not a folder of this machine, and the variable is not set.
    """
    configured = _Configured().registry
    if configured is not None:
        return configured
    if not isinstance(files, LocalFiles):
        raise EditError(f"{place} is not a local folder; set VLLM_EDIT_REGISTRY to the URL of the registry's database")
    return f"sqlite:///{(files.root / 'registry.db').absolute()}"


def pinned_signers() -> Path | None:
    """`$VLLM_EDIT_SIGNERS`: a list of trusted keys that replaces the store's; None if the variable is not set."""
    return _Configured().signers


def state_folder() -> Path:
    """Folder of a node's last known registry states: `$VLLM_EDIT_STATE`, else this user's state folder.

    On Linux the latter is `$XDG_STATE_HOME/vllm-edit`, or `~/.local/state/vllm-edit` if that is unset or relative.

    Raises:
        EditError: the variable is not set, and this user has no home folder.
    """
    configured = _Configured().state
    if configured is not None:
        return configured
    try:
        return user_state_path("vllm-edit", appauthor=False)
    except RuntimeError:
        raise EditError(
            "this user has no home folder; set VLLM_EDIT_STATE to a folder for the last known state"
        ) from None
