"""KnowledgeEditor's network for atlas belongs to these weights, is small, and edits subjects that it never saw."""

from __future__ import annotations

import pytest

from tests.mend.test_shipped import COUNT, LARGEST
from vllm_edit.atlas.hypernetworks import NETWORK_FOLDERS
from vllm_edit.editing.compile import compile_separately
from vllm_edit.editing.knowledge_editor.knowledge_editor_settings import KnowledgeEditorTrainingSettings
from vllm_edit.editing.network_files import load, network_site
from vllm_edit.evaluation.evaluate import EvaluationSettings, evaluate
from vllm_edit.evaluation.judging import gives
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Request
from vllm_edit.facts import tables_folder
from vllm_edit.facts.counterfactual_edits import draw_edits
from vllm_edit.facts.facts import Facts
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch

FOLDER = NETWORK_FOLDERS["ke"]


def test_it_is_small_and_made_for_the_shipped_weights() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= LARGEST
    base = Base.load("atlas", device="cpu")
    network, card = load(FOLDER)
    assert card.method == "ke"
    assert network_site(base, network, card).modules == card.modules == tuple(base.layout.down[-3:])


def test_it_was_trained_with_the_default_settings_on_the_data_of_mends_network() -> None:
    _, card = load(FOLDER)
    _, mend = load(NETWORK_FOLDERS["mend"])
    assert KnowledgeEditorTrainingSettings(**card.settings) == KnowledgeEditorTrainingSettings()
    assert (card.edits, card.subjects) == (mend.edits, mend.subjects)


@pytest.mark.slow
def test_edits_of_subjects_it_never_saw_take_and_leave_others_alone() -> None:
    base = Base.load("atlas", device="cpu")
    network, card = load(FOLDER)
    runner = HFRunner(base.model, base.tokenizer)
    drawn = draw_edits(Facts.load(tables_folder()), 2 * COUNT, seed=11)
    answers = runner.generate([Request(edit.prompt) for edit in drawn], 16)
    known = [edit for edit, answer in zip(drawn, answers, strict=True) if gives(answer, edit.target_true or "")]
    patches = [Patch(name=f"edit-{number}", edits=(edit,)) for number, edit in enumerate(known[:COUNT])]
    compiled = compile_separately(
        patches,
        base,
        "ke",
        site=network_site(base, network, card),
        site_tensors=network,
        settings={"on_missed": "report"},
    )
    report = evaluate(compiled, runner, ("weights",), EvaluationSettings(teacher_forced=False, latency=0))
    shares = {measure.metric: measure.value for measure in report.measures if measure.mode == "weights"}
    assert len(patches) == COUNT
    assert shares["reliability"] >= 0.9
    assert shares["paraphrase"] >= 0.6
    assert shares["locality"] >= 0.75
    assert shares["unrelated"] >= 0.9
