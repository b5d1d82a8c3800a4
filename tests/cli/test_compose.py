"""`compose` as a user runs it, on a tiny model: storing, reporting, gating and refusing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from tests.cli.program import Program
from tests.ordinary_text import less_likely
from tests.tiny import SENTENCES, save_tiny
from vllm_edit.artefacts.site import Context
from vllm_edit.editing.site.sites import fixed_site
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.ike.bank import Bank
from vllm_edit.ike.prefix import build_prefix
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.release.pipeline import Pipeline
from vllm_edit.store.store import Store

PATCH = """
name: {name}
gate: {{reliability: {least}{limit}}}
edits:
  - prompt: The capital of {country} is
    subject: {country}
    relation: capital
    target_new: {target}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of rank 1 with patches: two that disagree, and one whose gate no random model passes."""
    folder = tmp_path_factory.mktemp("compose")
    base = Base.load(save_tiny("llama", folder / "llama"))
    made = fixed_site(base, SENTENCES * 4, layer=1, token="last", contexts=(Context(),), max_rank=1)
    store = Store.create(folder / "store", made.site, made.moment.tensors())
    pipeline = Pipeline(store, base, Bank())
    for name, country, target, least, limit in (
        ("shared", "France", "Paris", 0, ""),
        ("own", "France", "Rome", 0, ""),
        ("other", "Japan", "Berlin", 0, ""),
        ("strict", "Japan", "Berlin", 1, ""),
        ("quiet", "Japan", "Berlin", 0, ", perplexity_drift: 0"),
    ):
        patch = Patch.parse(PATCH.format(name=name, country=country, target=target, least=least, limit=limit))
        # A random model has no facts to change. Its edits may miss, which these tests do not cover.
        pipeline.run(patch, settings={"on_missed": "report", "steps": 5, "forms": ["plain"]})
    store.registry.close()
    return folder / "store"


@pytest.fixture
def store(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A copy of the store, which the program uses by default."""
    monkeypatch.delenv("VLLM_EDIT_REGISTRY", raising=False)
    monkeypatch.setenv("VLLM_EDIT_STORE", str(copytree(compiled, tmp_path / "store")))
    opened = Store.open()
    yield opened
    opened.registry.close()


def test_patches_become_one_stored_and_gated_patch(program: Program, store: Store) -> None:
    ran = program("compose", "shared", "other", "--out", "both", "--truncate", "--json")
    assert ran.code == 0, ran.err
    printed = ran.json
    assert printed["name"].startswith("both@")
    assert (printed["status"], printed["judged_by"], printed["edits"], printed["rank"]) == ("accepted", "model", 2, 1)
    assert [name.split("@")[0] for name in printed["members"]] == ["other", "shared"]
    (pair,) = printed["algebra"]["interference"]
    assert sorted(pair["subjects"]) == ["France", "Japan"]
    assert 0 <= pair["cosine"] <= 1
    assert 0 < printed["algebra"]["kept_energy"] < 1

    stored = store.load(printed["name"])
    assert (stored.manifest.kind, stored.algebra.judged_by) == ("composition", "algebra")
    assert store.entry(printed["name"]).status == "accepted"
    records = {record.kind: record.data for record in store.records(printed["name"])}
    assert records["gate"]["judged_by"] == "model"
    for edit in stored.manifest.edits:  # mode ike works too: the members' demonstrations were copied
        assert edit.target_new in build_prefix(stored.manifest, stored.demonstrations, edit.prompt, 500).text

    shown = program("compose", "other", "shared", "--out", "both", "--truncate").out.splitlines()
    assert shown[0].startswith(f"{printed['name']}  accepted by the model, rank 1, 2 edits of 2 patches, ")
    assert f"truncated, {printed['algebra']['kept_energy']:.2%} of the energy kept" in shown[0]
    assert shown[-2].split() == ["SUBJECT", "SUBJECT", "COSINE"]
    assert shown[-1].split()[-1] == f"{pair['cosine']:.3f}"


def test_one_patch_alone_needs_a_name_for_the_result(program: Program, store: Store) -> None:
    before = store.names()
    ran = program("compose", "shared", "shared")
    assert (ran.code, "--out" in ran.err) == (1, True)
    assert store.names() == before


def test_above_the_sites_rank_it_is_refused_by_default(program: Program, store: Store) -> None:
    ran = program("compose", "shared", "other")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "needs rank 2, the site allows 1" in ran.err
    assert "--truncate" in ran.err


def test_a_conflict_is_refused_until_a_policy_decides_and_the_manifest_remembers(
    program: Program, store: Store
) -> None:
    refused = program("compose", "shared", "own")
    assert refused.code == 1
    conflict, advice = refused.err.splitlines()
    assert "'The capital of France is' → 'Paris' in shared@" in conflict
    assert "'Rome' in own@" in conflict
    assert "policy" in advice
    for policy, target in (("last", "Rome"), ("shared", "Paris")):
        ran = program("compose", "shared", "own", "--policy", policy, "--json")
        assert ran.code == 0, ran.err
        assert [edit.target_new for edit in store.manifest(ran.json["name"]).edits] == [target]
        assert len(ran.json["settings"]["left_out"]) == 1
    said = program("compose", "shared", "own", "--policy", "last").out.splitlines()[1]
    assert said.startswith("'The capital of France is' → 'Paris' of shared@")
    assert "own@" in said


def test_a_composition_that_fails_its_gate_is_stored_as_rejected(program: Program, store: Store) -> None:
    ran = program("compose", "shared", "strict", "--out", "asked", "--truncate", "--json")
    assert ran.code == 1
    assert f"{ran.json['name']}: rejected by its gate: reliability: 0.000" in ran.err
    assert store.entry(ran.json["name"]).status == "rejected"
    unknown = program("compose", "shared", "nobody")
    assert (unknown.code, unknown.err.count("\n")) == (1, 1)
    assert program("compose").code == 2


def test_a_composition_that_moves_ordinary_text_further_than_a_member_allows_is_rejected(
    program: Program, store: Store
) -> None:
    asked = ("compose", "shared", "quiet", "--out", "both", "--truncate", "--json")
    unjudged = program(*asked)
    assert unjudged.code == 1
    assert "perplexity_drift: not measured, since there is no text; the gate allows 0; add passages" in unjudged.err

    base = Base.load(store.site().model)
    made = store.load(unjudged.json["name"])
    store.keep_passages(less_likely(SENTENCES, made, HFRunner(base.model, base.tokenizer)))
    ran = program(*asked)
    assert ran.code == 1
    assert ran.json["name"] == unjudged.json["name"]
    assert f"{made.name}: rejected by its gate: perplexity_drift: " in ran.err
    assert store.entry(made.name).status == "rejected"
    assert store.records(made.name, "gate")[-1].data["drift"]["value"] > 0
    store.registry.create_tenant("acme")
    refused = program("tenant", "publish", "acme", "both")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "perplexity_drift" in refused.err
    overridden = program("tenant", "publish", "acme", "both", "--override", "known", "--who", "ann")
    assert overridden.code == 0, overridden.err
