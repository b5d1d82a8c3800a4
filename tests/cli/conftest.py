from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.store.example import new_store
from vllm_edit.store.store import Store


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that the program uses by default."""
    made = new_store(tmp_path / "store")
    monkeypatch.setenv("VLLM_EDIT_STORE", made.url)
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)
    return made
