from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest

from tests.cli.program import Program
from tests.made_once import MadeOnce
from tests.tiny import SENTENCES, save_tiny
from vllm_edit.store.store import Store


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that the program uses by default."""
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)
    made = Store.open(copytree(empty_store, tmp_path / "store"))
    monkeypatch.setenv("VLLM_EDIT_STORE", made.url)
    return made


@pytest.fixture
def initialised(program: Program, made_once: MadeOnce, tmp_path: Path) -> Path:
    """The test's own copy of a store without patches, which `store init` made for a tiny model; `--store` names it."""

    def make(folder: Path) -> None:
        model, texts = save_tiny("llama", folder / "llama"), folder / "texts.txt"
        texts.write_text("\n".join(SENTENCES * 4), encoding="utf-8")
        made = program("store", "init", "--model", model, "--layer", 1, "--texts", texts, "--store", folder / "store")
        assert made.code == 0, made.err

    return copytree(made_once("initialised", make) / "store", tmp_path / "initialised")
