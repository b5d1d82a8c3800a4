"""The patches of a store at a new base: which edits it knows, which hold, and which fail; nothing is published."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, bench
from vllm_edit.composition.compose import compose
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import Corrupt, EditError, Unavailable
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.ike.bank import Bank
from vllm_edit.patch import Gate, Patch
from vllm_edit.release.pipeline import Pipeline
from vllm_edit.release.recompile import Recompilation
from vllm_edit.release.recompile_report import RecompiledPatch
from vllm_edit.store.store import Store

ANY = Gate(reliability=0, locality=0, unrelated=0)
SETTINGS = json.loads(LOOSE.model_dump_json()) | {"steps": 2, "on_missed": "report"}
STRICT = {**SETTINGS, "on_missed": "error"}
KNOWN = JAPAN.model_copy(update={"target_new": "the yen"})
UNREACHABLE = BRAZIL.model_copy(update={"target_new": "全世界最帥的人是誰？全世界最帥的人是李宏毅。"})
OTHERWISE = Probe(kind="paraphrase", prompt="In Japan, people pay with the")
FAILING = BRAZIL


class Saying(HFRunner):
    """Answers in words, which a random model does not: the base knows one fact, and all edits but one hold."""

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> str:
        edits = () if request.patch is None else request.patch.manifest.edits
        held = (edit for edit in edits if edit.prompt == request.prompt and edit.subject != FAILING.subject)
        edit = next(held, KNOWN if request.prompt == KNOWN.prompt else None)
        return f" {edit.target_new}." if edit else " nothing."


@pytest.fixture(autouse=True)
def _in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pipeline", "recompile"):
        monkeypatch.setattr(f"vllm_edit.release.{module}.HFRunner", Saying)


def pipeline_at(folder: Path, layer: int) -> Pipeline:
    one = bench(layer=layer)
    return Pipeline(Store.create(folder, one.site, one.moment.tensors()), one.base, Bank())


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Pipeline]:
    made = pipeline_at(tmp_path / "new", 2)
    yield made
    made.store.registry.close()


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Pipeline]:
    made = pipeline_at(tmp_path / "old", 1)
    made.store.registry.create_tenant("acme")
    yield made
    made.store.registry.close()


def compiled(old: Pipeline, name: str, *edits: Edit, gate: Gate = ANY, tenant: str | None = None) -> str:
    patch = Patch(name=name, gate=gate, edits=edits, base=None)
    made = old.run(patch, "rome", SETTINGS).name
    if tenant is not None:
        old.store.registry.publish(tenant, made, override="a test", by="ann")
    return made


def recompiled(old: Pipeline, new: Pipeline, *names: str, **options: Any) -> list[RecompiledPatch]:
    return list(Recompilation(old.store, new, "rome", SETTINGS).run(names, **options))


def results(patch: RecompiledPatch) -> list[str]:
    return [edit.result for edit in patch.edits]


def test_each_edit_is_known_holds_or_is_refused_and_nothing_is_published(old: Pipeline, new: Pipeline) -> None:
    mixed = compiled(old, "mixed", KNOWN, FRANCE, FAILING, tenant="acme")
    known, missed = compiled(old, "known", KNOWN), compiled(old, "missed", UNREACHABLE)
    generation = old.store.registry.generation()
    first, second = recompiled(old, new, mixed, known)
    (third,) = Recompilation(old.store, new, "rome", STRICT).run([missed])
    assert (first.old, first.status, first.served_to, results(first)) == (
        mixed, "accepted", ("acme",), ["known", "holds", "fails"])  # fmt: skip
    assert [edit.subject for edit in new.store.manifest(str(first.new)).edits] == ["France", "Brazil"]
    assert (second.status, second.new, results(second)) == ("known", None, ["known"])
    assert (third.status, third.new, results(third)) == ("refused", None, ["refused"])
    assert "the target leads by" in third.problems[0]
    assert new.store.names() == [first.new]
    assert new.store.registry.published() == set()
    assert old.store.registry.generation() == generation, "the old store is only read"


def test_an_edit_is_known_only_if_its_paraphrases_are(old: Pipeline, new: Pipeline) -> None:
    name = compiled(old, "currency", KNOWN.model_copy(update={"probes": (OTHERWISE,)}))
    (patch,) = recompiled(old, new, name)
    assert results(patch) == ["holds"]


def test_a_patch_that_misses_its_gate_is_stored_as_rejected(old: Pipeline, new: Pipeline) -> None:
    strict = Gate(reliability=0, paraphrase=1, locality=0, unrelated=0)
    name = compiled(old, "strict", FRANCE.model_copy(update={"probes": (OTHERWISE,)}), gate=strict)
    (patch,) = recompiled(old, new, name)
    assert (patch.status, results(patch)) == ("rejected", ["holds"])
    assert patch.problems == ("paraphrase: 0.000 over 1 prompts, the gate asks for 1",)
    assert new.store.entry(str(patch.new)).status == "rejected"


def test_the_published_patches_are_those_that_tenants_are_served(old: Pipeline, new: Pipeline) -> None:
    first = compiled(old, "first", FRANCE, tenant="acme")
    second = compiled(old, "second", BRAZIL, tenant="acme")
    compiled(old, "draft", JAPAN)
    recompilation = Recompilation(old.store, new)
    assert recompilation.published() == [second]
    old.store.registry.rollback("acme")
    assert recompilation.published() == [first]


def test_a_run_that_was_interrupted_continues_where_it_was(
    old: Pipeline, new: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [compiled(old, "first", FRANCE), compiled(old, "second", BRAZIL)]
    run, compiling = new.run, list[str]()

    def watched(patch: Patch, *rest: Any) -> Any:
        compiling.append(patch.name)
        if compiling == ["first", "second"]:
            raise Unavailable("the disk is full")
        return run(patch, *rest)

    monkeypatch.setattr(new, "run", watched)
    with pytest.raises(Unavailable):
        recompiled(old, new, *names)
    first, second = recompiled(old, new, *names)
    assert compiling == ["first", "second", "second"]
    assert (first.status, second.status) == ("accepted", "accepted")
    recompiled(old, new, *names)
    assert len(compiling) == 3
    recompiled(old, new, *names, again=True)
    assert len(compiling) == 5
    other = list(Recompilation(old.store, new, "rome", {**SETTINGS, "steps": 3}).run(names[:1]))
    assert (len(compiling), other[0].status) == (6, "accepted"), "other settings are another report"
    stored = Recompilation(old.store, new, "rome", SETTINGS).report
    assert [patch.old for patch in stored.patches] == names
    assert new.store.files.exists(stored.path)


def test_a_composition_is_compiled_as_one_patch_with_its_conflicts_decided(old: Pipeline, new: Pipeline) -> None:
    rival = FRANCE.model_copy(update={"target_new": "Paris"})
    members = [
        old.store.load(compiled(old, "shared", FRANCE, BRAZIL)),
        old.store.load(compiled(old, "own", rival)),
    ]
    both = old.store.save(compose(members, "both", site=old.site, policy="last"))
    (patch,) = recompiled(old, new, both)
    assert patch.status == "accepted", patch.problems
    manifest = new.store.manifest(str(patch.new))
    assert (manifest.kind, manifest.patch) == ("patch", "both")
    assert {edit.subject: edit.target_new for edit in manifest.edits} == {"France": "Paris", "Brazil": "French"}


def test_stores_of_one_site_are_refused(old: Pipeline) -> None:
    with pytest.raises(EditError, match="have the same site"):
        Recompilation(old.store, old)


def test_a_damaged_report_is_refused_by_name(old: Pipeline, new: Pipeline) -> None:
    name = compiled(old, "first", KNOWN)
    recompiled(old, new, name)
    path = Recompilation(old.store, new, "rome", SETTINGS).report.path
    new.store.files.write(path, new.store.files.read(path).replace(b"known", b"holds"))
    with pytest.raises(Corrupt, match=path):
        Recompilation(old.store, new, "rome", SETTINGS)
