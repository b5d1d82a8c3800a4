"""The demo runs from an empty folder: real sweep, real compile, real server, publish and rollback while serving."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_demo_shows_the_whole_story(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_edit.cli", "demo", "--folder", str(tmp_path / "demo")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for shown in ("site: model.layers.", "rejected: reverse: ", "published, and", "taken back, and", "Server stopped."):
        assert shown in done.stdout, shown
    lines = done.stdout.splitlines()
    before, published, back = (
        next(line for line in lines if line.startswith(start))
        for start in ("before:", "published, and", "taken back, and")
    )
    assert "Victor Almqvist" in before
    assert "Ingrid Falkenberg" in published
    assert "Victor Almqvist" in back


def test_a_folder_without_the_demos_patches_is_reported_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    command = [sys.executable, "-m", "vllm_edit.cli", "demo", "--patches", "patches"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("vllm-edit: expected patches acme, globex, lecture in patches, got 0 others: ")
    assert [path.name for path in tmp_path.iterdir()] == ["patches"]
