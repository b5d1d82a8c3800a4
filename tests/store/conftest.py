from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest

from vllm_edit.store.store import Store


@pytest.fixture(autouse=True)
def _no_configured_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that the developer's environment names must not be touched."""
    monkeypatch.delenv("VLLM_EDIT_STORE", raising=False)
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Store:
    return Store.open(copytree(empty_store, tmp_path / "store"))
