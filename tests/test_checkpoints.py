"""Checkpoints of trainings: an unreadable checkpoint, or that of another training, is reported in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vllm_edit.checkpoints import read_checkpoint, write_checkpoint
from vllm_edit.errors import EditError


def test_a_checkpoint_is_read_back_and_none_is_none(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert read_checkpoint(path, "a", "is another's") is None
    write_checkpoint(path, "a", {"step": 3})
    found = read_checkpoint(path, "a", "is another's")
    assert found is not None
    assert found["step"] == 3
    with pytest.raises(EditError, match=r"checkpoint\.pt is another's; remove it"):
        read_checkpoint(path, "b", "is another's")


@pytest.mark.parametrize("kept", [0, 1, 30, 200])
def test_a_cut_checkpoint_is_reported(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"identity": "a", "step": 3}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EditError, match=r"checkpoint\.pt cannot be read as a checkpoint") as refused:
        read_checkpoint(path, "a", "is another's")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [3, [], {"step": 3}])
def test_another_file_of_torch_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(EditError, match="cannot be read as a checkpoint"):
        read_checkpoint(path, "a", "is another's")
