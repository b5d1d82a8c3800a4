"""The network shipped for atlas belongs to these weights, is small, was trained on no judged subject, and edits."""

from __future__ import annotations

import pytest

from benchmarks.network_lengths import JUDGED_COUNT, JUDGED_SEED
from vllm_edit.atlas.hypernetworks import NETWORK_FOLDERS, judged, training_edits, training_texts
from vllm_edit.editing.compile import compile_separately
from vllm_edit.editing.network_files import load, network_site
from vllm_edit.evaluation.evaluate import EvaluationSettings, evaluate
from vllm_edit.evaluation.judging import gives
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.facts import tables_folder
from vllm_edit.facts.counterfactual_edits import draw_edits
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.split import included
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch
from vllm_edit.text.matching import normalise

LARGEST = 12 * 2**20
COUNT = 12


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts.load(tables_folder())


def test_it_is_small_and_made_for_the_shipped_weights() -> None:
    assert sum(file.stat().st_size for file in NETWORK_FOLDERS["mend"].iterdir()) <= LARGEST
    base = Base.load("atlas", device="cpu")
    network, card = load(NETWORK_FOLDERS["mend"])
    assert network_site(base, network, card).modules == card.modules
    assert all(name in dict(base.model.named_modules()) for name in card.modules)


def test_no_subject_that_an_evaluation_may_edit_is_in_the_training_edits_or_their_probes(facts: Facts) -> None:
    edits = training_edits(300)
    trained = {normalise(name) for edit in edits for name in (edit.subject, *edit.aliases)}
    judged = [subject for subject in facts.subjects if not included("sweep", subject.name, share=0.2)]
    assert not trained & {normalise(name) for subject in judged for name in (subject.name, *subject.aliases)}
    for seed in (1, 2, 3):
        assert not trained & {normalise(edit.subject) for edit in draw_edits(facts, 200, seed=seed)}
    asked = {probe.prompt for edit in edits for probe in edit.probes if probe.kind in ("locality", "unrelated")}
    forms = {form.fill(s.name) for s in judged for fact in s.facts.values() for form in fact.relation.trained}
    assert not asked & forms


def test_no_question_of_the_comparison_is_a_preserved_prompt_or_in_the_texts(facts: Facts) -> None:
    drawn = draw_edits(facts, JUDGED_COUNT + JUDGED_COUNT // 4, seed=JUDGED_SEED)
    asked = {normalise(probe.prompt) for edit in drawn for probe in edit.probes}
    assert asked <= {normalise(probe.prompt) for edit in judged().edits for probe in edit.probes}
    kept = {normalise(probe.prompt) for edit in training_edits(1000) for probe in edit.probes}
    assert len(kept) > 1000
    assert not kept & asked
    texts = training_texts(100)
    assert len(texts) == 100
    assert not [text for text in texts if any(prompt in normalise(text) for prompt in asked)]


def test_a_new_answer_may_be_any_object_of_the_relation_and_its_probes_follow_it(facts: Facts) -> None:
    edits = training_edits(400)
    own = {
        fact.object
        for subject in facts.subjects
        if included("sweep", subject.name, share=0.2)
        for fact in subject.facts.values()
    }
    assert any(edit.target_new not in own for edit in edits)
    for edit in edits:
        assert edit.target_new != edit.target_true
        assert edit.target_new in {fact.object for fact in facts.by_relation[edit.relation]}
        assert all(p.target == edit.target_new for p in edit.probes if p.tag == "alias")
    assert {probe.kind for edit in edits for probe in edit.probes} >= {"paraphrase", "portability", "locality"}


def test_training_edits_are_drawn_from_a_seed_and_can_leave_subjects_out() -> None:
    edits = training_edits(20, seed=4)
    assert training_edits(20, seed=4) == edits != training_edits(20, seed=5)
    left_out = edits[0].subject
    assert left_out not in {edit.subject for edit in training_edits(200, exclude=[left_out])}


@pytest.mark.slow
def test_edits_of_subjects_it_never_saw_take_and_leave_others_alone(facts: Facts) -> None:
    base = Base.load("atlas", device="cpu")
    network, card = load(NETWORK_FOLDERS["mend"])
    runner = HFRunner(base.model, base.tokenizer)
    drawn = draw_edits(facts, 2 * COUNT, seed=11)
    answers = runner.generate([Request(edit.prompt) for edit in drawn], 16)
    known = [edit for edit, answer in zip(drawn, answers, strict=True) if gives(answer, edit.target_true or "")]
    patches = [Patch(name=f"edit-{number}", edits=(edit,)) for number, edit in enumerate(known[:COUNT])]
    site = network_site(base, network, card)
    compiled = compile_separately(
        patches, base, "mend", site=site, site_tensors=network, settings={"on_missed": "report"}
    )
    report = evaluate(compiled, runner, ("weights",), EvaluationSettings(teacher_forced=False, latency=0))
    shares = {measure.metric: measure.value for measure in report.measures if measure.mode == "weights"}
    assert len(known) >= COUNT
    assert shares["reliability"] >= 0.75
    assert shares["paraphrase"] >= 0.6
    assert shares["locality"] >= 0.75
    assert shares["unrelated"] >= 0.9
