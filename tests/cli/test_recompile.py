"""`vllm-edit recompile`: the published patches of one store, compiled for the base of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.serving import places
from vllm_edit.store.store import Store

FORCED = ("--set", "on_missed=report", "--set", "steps=2", "--set", "forms=[plain]")

pytestmark = pytest.mark.slow


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of another base; one of its patches is published."""
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)
    made = places.make_store(tmp_path / "old", places.make_site(places.make_model(tmp_path / "model"), layer=0))
    made.registry.create_tenant("acme")
    places.add_patch(made, "draft", 2)
    made.registry.publish("acme", places.add_patch(made, "capital", 1))
    return made


def test_published_patches_are_recompiled_once_and_reported(program: Program, old: Store, initialised: Path) -> None:
    (name,) = old.registry.served_to()
    command = ("recompile", "--store", old.url, "--to", initialised, *FORCED)
    first = program(*command, "--json")
    report = first.json
    (patch,) = report["patches"]
    assert (patch["old"], patch["served_to"], patch["status"]) == (name, ["acme"], "rejected")
    assert [edit["result"] for edit in patch["edits"]] == ["fails"]
    new = Store.open(initialised)
    assert new.names() == [patch["new"]]
    assert new.registry.published() == set()
    assert json.loads((initialised / report["file"]).read_text())["recompiled"]["patches"] == report["patches"]
    assert first.code == 1
    assert f"{name}: reliability: 0.000" in first.err
    saved = new.entry(patch["new"]).saved_at
    again = program(*command)
    assert again.out.splitlines()[1].split() == [
        name[:20], "acme", "1", "0", "0", "1", "0", "rejected", patch["new"][:20]]  # fmt: skip
    assert report["file"] in again.out
    assert new.entry(patch["new"]).saved_at == saved, "an earlier run has done it"
    whole = program(*command, "--all", "--json").json
    assert [found["old"].partition("@")[0] for found in whole["patches"]] == ["capital", "draft"]


def test_mistakes_are_one_line_before_a_model_is_loaded(program: Program, old: Store, initialised: Path) -> None:
    for arguments, said in (
        (("--to", initialised / "none"), "no store at"),
        (("--to", initialised, "--set", "stride=1"), "unknown settings stride"),
        (("--to", initialised, "--to-registry", old.registry.url), "belongs to another store"),
    ):
        ran = program("recompile", "--store", old.url, *arguments)
        assert (ran.code, said in ran.err, ran.err.count("\n")) == (1, True, 1), ran.err
