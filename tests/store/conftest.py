from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.example import new_store
from vllm_edit.store.store import Store


@pytest.fixture(autouse=True)
def _no_configured_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that the developer's environment names must not be touched."""
    monkeypatch.delenv("VLLM_EDIT_STORE", raising=False)
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")
