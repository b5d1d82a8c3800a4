"""Training KnowledgeEditor's network: it lowers the loss, leaves the base alone, and resumes with the same result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.knowledge_editor.tiny_editor import QUICK
from tests.mend.test_training import Stopped, stop_at
from tests.mend.tiny_training import TEXTS, tiny_base, tiny_edits
from vllm_edit.editing.hypernetworks.edited_matrices import last_down_projections
from vllm_edit.editing.hypernetworks.network_training import CHECKPOINT, NetworkTrainingState, TrainedNetwork, train
from vllm_edit.editing.knowledge_editor.knowledge_editor_settings import KnowledgeEditorTrainingSettings
from vllm_edit.editing.network_methods import NETWORK_METHODS
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base, unchanged

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def run(
    base: Base,
    out: Path,
    settings: KnowledgeEditorTrainingSettings = QUICK,
    stop: int | None = None,
    seen: list[NetworkTrainingState] | None = None,
) -> TrainedNetwork:
    def report(progress: NetworkTrainingState) -> None:
        if seen is not None:
            seen.append(progress)
        stop_at(stop or 0)(progress)

    method, modules = NETWORK_METHODS["ke"], last_down_projections(base, 2)
    return train(method, base, modules, tiny_edits(), TEXTS, settings, out, report)


def test_training_lowers_the_lagrangian_and_leaves_the_base_alone(base: Base, tmp_path: Path) -> None:
    settings = QUICK.replace(steps=40, edits=6, rate=1e-2, validate_every=10, bound=10.0, least_bound=10.0)
    seen: list[NetworkTrainingState] = []
    with unchanged(base):
        trained = run(base, tmp_path, settings, seen=seen)
    losses = [step.validation.loss for step in seen if step.validation]
    assert len(losses) == 4
    assert min(losses[1:]) < losses[0]
    assert trained.validation.loss == min(losses)
    assert not trained.network.training


def test_a_broken_bound_shifts_the_weight_to_what_must_stay(base: Base, tmp_path: Path) -> None:
    """With a bound that every step breaks, the multiplier reaches its limits: the weight of NLL vanishes."""
    seen: list[NetworkTrainingState] = []
    settings = QUICK.replace(multiplier_rate=5.0, bound=1e-9, least_bound=1e-9, length=1.0)
    run(base, tmp_path, settings, seen=seen)
    assert seen[-1].teach_loss < 0.01 * seen[0].teach_loss


def test_a_run_that_was_stopped_gives_the_network_of_one_that_was_not(base: Base, tmp_path: Path) -> None:
    settings = QUICK.replace(multiplier_rate=1.0, bound=1e-3, least_bound=1e-4)
    whole = run(base, tmp_path / "whole", settings)
    for step in (3, 5):  # after the checkpoints of steps 2 and 4
        with pytest.raises(Stopped):
            run(base, tmp_path / "parts", settings, stop=step)
    state = torch.load(tmp_path / "parts" / CHECKPOINT, weights_only=True)["objective"]
    assert state["multiplier"] != settings.multiplier
    resumed = run(base, tmp_path / "parts", settings)
    assert resumed.network.digest == whole.network.digest
    assert (resumed.step, resumed.validation) == (whole.step, whole.validation)


def test_bounds_out_of_order_are_refused() -> None:
    with pytest.raises(EditError, match="least_bound must be at most bound"):
        KnowledgeEditorTrainingSettings.of({"least_bound": 1.0})
