"""Pipeline: many patches compiled at once, to be stored or only measured, and their refusals."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, bench, patch_of
from tests.ordinary_text import less_likely
from tests.tiny import SENTENCES
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.edit import Probe
from vllm_edit.editing.compile import compile_patch
from vllm_edit.errors import EditError, Unsolvable
from vllm_edit.evaluation.evaluate import EvaluationSettings, evaluate
from vllm_edit.evaluation.perplexity import drift_of
from vllm_edit.evaluation.refused import Refused
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.table import table
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.pool import Known, Pool
from vllm_edit.ike.bank import Bank
from vllm_edit.patch import Gate, Patch
from vllm_edit.release import compiler
from vllm_edit.release.pipeline import Outcome, Pipeline
from vllm_edit.store.store import Store

UNREACHABLE = JAPAN.model_copy(update={"target_new": "全世界最帥的人是誰？全世界最帥的人是李宏毅。"})
AGAIN = FRANCE.model_copy(update={"target_new": "Paris"})


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    one = bench()
    store = Store.create(tmp_path / "store", one.site, one.moment.tensors())
    yield Pipeline(store, one.base, Bank())
    store.registry.close()


def test_every_patch_is_compiled_as_if_alone_or_refused_with_its_reason(pipeline: Pipeline) -> None:
    # Two of them edit one subject, so they cannot be compiled in one batch.
    patches = [patch_of(FRANCE, name="one"), patch_of(UNREACHABLE, name="two"), patch_of(AGAIN, name="three")]
    reported: list[str] = []
    tried = pipeline.attempt(patches, "rome", dict(LOOSE), lambda what, done, total: reported.append(what))
    assert [entry.declared.name if isinstance(entry, Refused) else entry.manifest.patch for entry in tried] == [
        "one", "two", "three",
    ]  # fmt: skip
    first, refused, third = tried
    assert isinstance(refused, Refused)
    assert UNREACHABLE.target_new in refused.reason
    assert "the target leads by" in refused.reason
    for patch, found in ((patches[0], first), (patches[2], third)):
        assert isinstance(found, CompiledPatch)
        alone = compile_patch(
            patch, pipeline.base, site=pipeline.site, site_tensors=pipeline.site_tensors, settings=LOOSE
        )
        for module, part in found.delta.parts.items():
            expected = alone.delta.parts[module].dense()
            assert torch.allclose(part.dense(), expected, atol=2e-3 * float(expected.abs().max()))
    for item in tried:
        assert {demonstration.kind for demonstration in item.demonstrations} == {"copy", "fact"}
    assert "demonstrations" in reported
    assert pipeline.store.names() == []


def test_patches_compiled_in_a_batch_are_stored_and_judged_each_and_one_that_misses_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []
    together = compiler.compile_separately

    def watched(patches: Sequence[Patch], *rest: Any, **options: Any) -> list[CompiledPatch]:
        batches.append([patch.name for patch in patches])
        return together(patches, *rest, **options)

    monkeypatch.setattr(compiler, "compile_separately", watched)
    edits = {"one": FRANCE, "two": UNREACHABLE, "three": AGAIN, "four": BRAZIL}
    patches = [patch_of(edit, name=name) for name, edit in edits.items()]
    found = {patch.name: result for patch, result in pipeline.run_all(patches, "rome", dict(LOOSE))}
    assert batches == [["one", "two", "four"]], "three edits a subject of the batch, and is compiled alone"
    assert found.keys() == edits.keys()
    for name, result in found.items():
        if name == "two":
            assert isinstance(result, Refused)
            assert result.reason.startswith("edit 0 ('The currency of Japan is the' → ")
        else:
            assert isinstance(result, Outcome)
            assert pipeline.store.entry(result.name).status in ("accepted", "rejected")
            assert pipeline.store.records(result.name, "gate")
            assert pipeline.store.load(result.name).demonstrations
    assert len(pipeline.store.names()) == 3


@pytest.mark.parametrize("scope", ["all", "subject"])
def test_an_edit_that_the_model_cannot_read_is_refused_alone_and_by_its_number(
    pipeline: Pipeline, scope: Literal["all", "subject"]
) -> None:
    long = JAPAN.model_copy(update={"target_new": "Paris " * 300})
    patches = [patch_of(FRANCE, name="one"), Patch(name="two", scope=scope, edits=(BRAZIL, long))]
    first, refused = pipeline.attempt(patches, "rome", dict(LOOSE))
    assert isinstance(first, CompiledPatch)
    assert isinstance(refused, Refused)
    lines = refused.reason.splitlines()
    assert len(lines) == 2, "as plain text and as a chat turn"
    assert all(line.startswith("edit 1 ('") and " → 'Paris Paris " in line for line in lines)


@pytest.mark.parametrize("scope", ["all", "subject"])
def test_a_patch_that_no_method_can_solve_is_refused_and_the_others_go_on(
    pipeline: Pipeline, scope: Literal["all", "subject"], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsolvable(patch: Patch, *rest: Any, **options: Any) -> CompiledPatch:
        if patch.name == "two":
            raise Unsolvable("the keys are linearly dependent")
        return compile_patch(patch, *rest, **options)

    monkeypatch.setattr(compiler, "compile_patch", unsolvable)
    # All edit one subject, so each is compiled alone.
    patches = [Patch(name=name, scope=scope, edits=(FRANCE,)) for name in ("one", "two", "three")]
    first, refused, third = pipeline.attempt(patches, "rome", dict(LOOSE))
    assert isinstance(refused, Refused)
    assert refused.reason == "the keys are linearly dependent"
    assert isinstance(first, CompiledPatch)
    assert isinstance(third, CompiledPatch)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("nothing", {}, "there is no method"),
        ("rome", {"steps": -1}, "steps"),
        ("lora", {"rank": 99}, "rank 99 exceeds the site's maximum"),
        ("mend", {}, "method mend cannot use this store's site"),
    ],
)
def test_a_wrong_method_or_setting_is_an_error_and_refuses_no_patch(
    pipeline: Pipeline, method: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(EditError, match=message):
        pipeline.attempt([patch_of(FRANCE, name="one"), patch_of(JAPAN, name="two")], method, settings)


def test_an_edit_to_be_reported_is_not_refused(pipeline: Pipeline) -> None:
    (one,) = pipeline.attempt([patch_of(UNREACHABLE, name="two")], "rome", {**dict(LOOSE), "on_missed": "report"})
    assert isinstance(one, CompiledPatch)
    assert one.report.missed == (0,)


@pytest.mark.parametrize(("rank", "why"), [(1, "cannot be served together"), (8, "which need rank up to 16")])
def test_a_prompt_that_a_server_would_refuse_fails_its_probe_and_the_patch_is_judged(
    pipeline: Pipeline, rank: int, why: str
) -> None:
    both = "Is Japan larger than France?"
    probes = (Probe(kind="paraphrase", prompt=both), Probe(kind="unrelated", prompt=both, target="people"))
    scoped = Patch(
        name="scoped", scope="subject", gate=Gate(reliability=0, locality=0, paraphrase=0.5, unrelated=0.5),
        edits=(FRANCE.model_copy(update={"probes": probes}), JAPAN),
    )  # fmt: skip
    settings = {"rank": rank, "steps": 1, "on_missed": "report"}
    outcome = pipeline.run(scoped, "ft", settings)
    assert outcome.failures == (
        "paraphrase: 0.000 over 1 prompts (1 of them refused), the gate asks for 0.5",
        "unrelated: 0.000 over 1 prompts (1 of them refused), the gate asks for 0.5",
    )
    (status,) = [row.status for row in pipeline.store.registry.patches() if row.name == outcome.name]
    assert status == "rejected"
    runner = HFRunner(pipeline.base.model, pipeline.base.tokenizer)
    report = evaluate(
        outcome.compiled, runner, settings=EvaluationSettings(max_tokens=2, latency=0), site=pipeline.site
    )
    assert list(report.unserved) == [outcome.name]
    assert list(report.unserved[outcome.name]) == [both]
    assert why in report.unserved[outcome.name][both]
    reliability, unrelated = report.find("reliability", "weights"), report.find("unrelated", "ike")
    assert reliability is not None
    assert unrelated is not None
    assert (reliability.n, reliability.refused, unrelated.refused) == (2, 0, 0)
    right = report.find("unrelated_right", "weights", "argmax")
    assert right is not None
    assert (right.value, right.n, right.refused) == (0.0, 1, 1)
    console = Console(file=io.StringIO(), width=200)
    console.print(table(report))
    assert both in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("scope", ["all", "subject"])
def test_a_patch_that_moves_ordinary_text_too_far_is_rejected_and_one_that_cannot_be_judged_too(
    pipeline: Pipeline, scope: Literal["all", "subject"]
) -> None:
    gate = Gate(reliability=0, locality=0, unrelated=0, perplexity_drift=0)
    limited = Patch(name="limited", scope=scope, gate=gate, edits=(FRANCE, JAPAN))
    settings, runner = dict(LOOSE), HFRunner(pipeline.base.model, pipeline.base.tokenizer)
    unjudged = pipeline.run(limited, "rome", settings)
    assert [line.split(",")[0] for line in unjudged.failures] == ["perplexity_drift: not measured"]
    assert pipeline.store.entry(unjudged.name).status == "rejected"

    first = unjudged.compiled.units[0] if scope == "subject" else unjudged.compiled
    passages = less_likely([f"France. {text}" for text in SENTENCES if "Japan" not in text], first, runner)
    pipeline.store.keep_passages(passages)
    rejected = pipeline.run(limited, "rome", settings)
    assert rejected.name == unjudged.name
    (line,) = rejected.failures
    assert line.startswith("perplexity_drift: ")
    assert line.endswith("the gate allows 0")
    entry, record = pipeline.store.entry(rejected.name), pipeline.store.records(rejected.name, "gate")[-1].data
    assert (entry.status, entry.reason, record["failures"]) == ("rejected", line, [line])
    drift = record["drift"]
    assert drift["value"] > 0
    assert drift == drift_of(passages, [rejected.compiled], runner, pipeline.site).model_dump()

    def with_limit(most: float | None) -> Patch:
        return limited.model_copy(update={"gate": gate.model_copy(update={"perplexity_drift": most})})

    accepted = pipeline.run(with_limit(drift["value"]), "rome", settings)
    assert accepted.accepted
    assert accepted.name != rejected.name, "the gate is part of the name"
    free = pipeline.run(with_limit(None), "rome", settings)
    assert pipeline.store.records(free.name, "gate")[-1].data["drift"] is None, "nobody asked"


def test_a_patch_with_scope_subject_is_compiled_as_it_says(pipeline: Pipeline) -> None:
    scoped = patch_of(FRANCE, JAPAN, name="scoped").model_copy(update={"scope": "subject"})
    tried = pipeline.attempt([patch_of(BRAZIL, name="one"), scoped], "rome", dict(LOOSE))
    one, two = tried
    assert isinstance(one, CompiledPatch)
    assert isinstance(two, CompiledPatch)
    assert (len(one.units), len(two.units)) == (0, 2)


def test_a_gate_asks_known_facts_where_a_patch_declares_nothing_to_keep(pipeline: Pipeline) -> None:
    facts = Facts.load(tables_folder())
    patch = patch_of(FRANCE.model_copy(update={"relation": "countries.capital", "probes": ()}), name="france")
    patch = patch.model_copy(update={"gate": Gate(reliability=0, locality=1)})
    before = pipeline.run(patch, "rome", dict(LOOSE))
    capitals = facts.by_relation["countries.capital"]
    known = tuple(Known(fact, fact.relation.trained[:1]) for fact in capitals)
    pipeline.store.keep("pool", Pool(known, {"countries.capital": len(capitals)}).as_record())

    asked = Pipeline(pipeline.store, pipeline.base, Bank())
    outcome = asked.run(patch, "rome", dict(LOOSE))
    assert outcome.name == before.name, "the patch is what was declared"
    first, record = (item.data for item in pipeline.store.records(outcome.name, "gate"))
    assert (first["default_probes"], record["default_probes"]) == (0, 8)
    answers = [answer for answer in record["answers"] if answer["metric"] == "locality"]
    assert {answer["tag"] for answer in answers} == {"default"}
    assert len(answers) == 8
    kept = sum(answer["right"]["weights"] for answer in answers) / 8
    assert (outcome.failures == ()) is (kept == 1)
    assert not before.failures
