"""`vllm-edit trace` on atlas with a small limit: JSON, tables, pictures, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program import Program

PATCH = """
name: capital
edits:
  - {prompt: The capital of Japan is, subject: Japan, target_new: Osaka, target_true: Tokyo}
  - {prompt: The capital of Egypt is, subject: Egypt, target_new: Osaka, target_true: Osaka Bay}
"""


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "capital.yaml"
    path.write_text(PATCH, encoding="utf-8")
    return path


def test_json_holds_every_number_and_the_picture_is_drawn(program: Program, patch: Path, tmp_path: Path) -> None:
    ran = program("trace", patch, "--samples", 2, "--window", 3, "--json", "--out", tmp_path / "heat.svg")
    assert ran.code == 0, ran.err
    found = ran.json
    depth = found["layers"]
    assert (found["base"], found["settings"]["window"], found["settings"]["samples"]) == ("atlas", 3, 2)
    assert [prompt["subject"] for prompt in found["prompts"]] == ["Japan", "Egypt"]
    # The trace follows the base's own answer, not the patch's target.
    assert [prompt["believed"] for prompt in found["prompts"]] == [True, False]
    assert found["total_effect"]["value"] == pytest.approx(found["clean"]["value"] - found["corrupted"]["value"])
    assert found["total_effect"]["value"] > 0.1
    for kind in ("hidden", "mlp", "attention"):
        assert all(len(means) == depth for means in found["effects"][kind].values())
    assert found["effects"]["hidden"]["last"][-1]["value"] == pytest.approx(found["total_effect"]["value"], abs=1e-5)
    assert Path(found["picture"]).read_bytes().startswith(b"<?xml")


def test_tables_for_people_and_the_limit(program: Program, patch: Path) -> None:
    ran = program("trace", patch, "--limit", 1, "--samples", 1, "--batch-tokens", 500)
    assert ran.code == 0, ran.err
    assert "atlas: 1 prompt, 1 noise sample of 3 σ" in " ".join(ran.out.split())
    assert "average indirect effect: attention" in ran.out
    assert "strongest MLP effect at a token that a site can have: layer" in " ".join(ran.out.split())


def test_mistakes_are_reported_before_anything_is_computed(program: Program, patch: Path, tmp_path: Path) -> None:
    ran = program("trace", patch, "--out", tmp_path / "heat.pdf")
    assert (ran.code, ran.out) == (1, "")
    assert "expected a picture named *.png or *.svg" in ran.err
    ran = program("trace", tmp_path / "notes.txt")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "expected PATCH.yaml or DATASET.json to trace" in ran.err
    assert program("trace", patch, "--noise", -1).code == 2
    ran = program("trace", patch, "--model", tmp_path / "nothing")
    assert ran.code == 1
    assert "nothing" in ran.err
