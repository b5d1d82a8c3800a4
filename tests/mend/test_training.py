"""Training lowers the loss, resumes with the same result, stops early and saves the best network."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.example_edit import MOVE
from tests.mend.tiny_training import QUICK, TEXTS, tiny_base, tiny_edits
from vllm_edit.edit import Probe
from vllm_edit.editing.baselines.common import example_rows
from vllm_edit.editing.hypernetworks.dataset import Example, check_apart, only_tune_probes, split, without_held_out
from vllm_edit.editing.hypernetworks.edited_matrices import last_matrices
from vllm_edit.editing.hypernetworks.judged import Judged
from vllm_edit.editing.hypernetworks.loss import run as run_rows
from vllm_edit.editing.hypernetworks.network_training import (
    CHECKPOINT,
    NetworkTrainingState,
    TrainedNetwork,
    Validation,
    better,
    train,
)
from vllm_edit.editing.mend.mend_settings import MendTrainingSettings
from vllm_edit.editing.network_methods import NETWORK_METHODS
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base, unchanged

pytestmark = pytest.mark.slow

MEND = NETWORK_METHODS["mend"]


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def run(
    base: Base, out: Path, settings: MendTrainingSettings = QUICK, seen: list[NetworkTrainingState] | None = None
) -> TrainedNetwork:
    report = (lambda progress: None) if seen is None else seen.append
    return train(MEND, base, last_matrices(base, 2), tiny_edits(), TEXTS, settings, out, report)


@pytest.fixture(scope="module")
def whole(base: Base, tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    """A run of `QUICK` that nothing stopped."""
    return run(base, tmp_path_factory.mktemp("whole"))


@dataclass(frozen=True)
class Overshot:
    """A run at a rate that only does harm. networks: by step, what the checkpoint of each validation has."""

    settings: MendTrainingSettings
    trained: TrainedNetwork
    seen: list[NetworkTrainingState]
    networks: dict[int, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def overshot(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Overshot:
    folder, seen = tmp_path_factory.mktemp("overshot"), list[NetworkTrainingState]()
    networks: dict[int, dict[str, torch.Tensor]] = {}

    def report(progress: NetworkTrainingState) -> None:
        seen.append(progress)
        if progress.validation:
            networks[progress.step] = torch.load(folder / CHECKPOINT, weights_only=True)["network"]

    settings = QUICK.replace(steps=60, rate=0.5, alpha_rate=0.5, patience=2)
    trained = train(MEND, base, last_matrices(base, 2), tiny_edits(), TEXTS, settings, folder, report)
    return Overshot(settings, trained, seen, networks)


class Stopped(Exception):
    """An exception that ends a run in the middle."""


def stop_at(step: int) -> Callable[[NetworkTrainingState], None]:
    def report(progress: NetworkTrainingState) -> None:
        if progress.step == step:
            raise Stopped

    return report


def test_training_lowers_the_loss_and_leaves_the_base_alone(base: Base, tmp_path: Path) -> None:
    seen: list[NetworkTrainingState] = []
    settings = QUICK.replace(steps=40, edits=6, rate=1e-2, alpha_rate=1e-3, validate_every=10, teach_weight=1.0)
    with unchanged(base):
        trained = run(base, tmp_path, settings, seen)
    losses = [step.teach_loss + step.keep_loss for step in seen]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert [step.step for step in seen if step.validation] == [10, 20, 30, 40]
    assert not trained.network.training


def test_a_run_that_was_stopped_gives_the_network_of_one_that_was_not(
    base: Base, whole: TrainedNetwork, tmp_path: Path
) -> None:
    for step in (3, 5):  # after the checkpoints of steps 2 and 4
        with pytest.raises(Stopped):
            train(MEND, base, last_matrices(base, 2), tiny_edits(), TEXTS, QUICK, tmp_path / "parts", stop_at(step))
    resumed = run(base, tmp_path / "parts")
    assert resumed.network.digest == whole.network.digest
    assert (resumed.step, resumed.validation) == (whole.step, whole.validation)


def test_a_checkpoint_from_before_there_were_objectives_is_taken_up(base: Base, tmp_path: Path) -> None:
    whole = run(base, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(MEND, base, last_matrices(base, 2), tiny_edits(), TEXTS, QUICK, tmp_path / "old", stop_at(3))
    path = tmp_path / "old" / CHECKPOINT
    saved = torch.load(path, weights_only=True)
    assert saved.pop("objective") == {}
    torch.save(saved, path)
    assert run(base, tmp_path / "old").network.digest == whole.network.digest


def test_stored_states_below_the_matrices_give_the_same_network(
    base: Base, whole: TrainedNetwork, tmp_path: Path
) -> None:
    stored = run(base, tmp_path, QUICK.replace(stored_tokens=10_000))
    assert stored.step == whole.step
    assert stored.validation.loss == pytest.approx(whole.validation.loss, rel=1e-3)
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(stored.network.state_dict()[name], value, rtol=1e-2, atol=1e-3)


def test_rows_that_are_not_compared_with_the_base_have_the_same_losses_and_gradients(base: Base) -> None:
    edits = tiny_edits()[:3]
    rows = example_rows(edits, base.tokenizer)
    found = []
    for compared in (True, False):
        rng = torch.Generator().manual_seed(0)
        factors = {
            name: tuple(torch.randn(3, *shape, generator=rng).requires_grad_() for shape in ((2, 64), (96, 2)))
            for name in base.layout.matrices[-1][:1]
        }
        outcomes = run_rows(base, factors, rows, 4096, nll_weight=1.0, compared=compared)
        found.append((outcomes, [factor.grad for pair in factors.values() for factor in pair]))
    (whole, expected), (alone, gradients) = found
    assert torch.equal(whole.nll, alone.nll)
    assert torch.equal(whole.lead, alone.lead)
    assert whole.divergence.all()
    assert not alone.divergence.any()
    for gradient, own in zip(gradients, expected, strict=True):
        assert gradient is not None
        assert gradient.any()
        assert torch.equal(gradient, own)


def test_a_checkpoint_of_another_run_is_refused(base: Base, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(MEND, base, last_matrices(base, 2), tiny_edits(), TEXTS, QUICK, tmp_path, stop_at(3))
    assert (tmp_path / CHECKPOINT).exists()
    with pytest.raises(EditError, match="other data, base or settings"):
        run(base, tmp_path, QUICK.replace(seed=1))


def test_it_stops_early_and_keeps_the_best_network(overshot: Overshot) -> None:
    """The first validation is the best one."""
    settings, trained, seen = overshot.settings, overshot.trained, overshot.seen
    validated = {step.step: step.validation.loss for step in seen if step.validation}
    best = min(validated, key=validated.__getitem__)
    assert trained.step == best
    assert trained.validation.loss == validated[best]
    assert trained.stopped == seen[-1].step == best + 2 * settings.validate_every < settings.steps
    assert [step.step for step in seen if step.best][-1] == best


def test_the_saved_network_is_that_of_the_best_step(overshot: Overshot) -> None:
    trained, networks = overshot.trained, overshot.networks
    for name, value in trained.network.state_dict().items():
        assert torch.equal(value, networks[trained.step][name])
    assert any(
        not torch.equal(value, networks[trained.stopped][name]) for name, value in trained.network.state_dict().items()
    )


def test_a_validation_that_is_not_a_number_is_never_the_best_one(base: Base, tmp_path: Path) -> None:
    """A rate at which the network overflows in its first steps, so that no validation has a finite loss."""
    seen: list[NetworkTrainingState] = []
    settings = QUICK.replace(steps=60, rate=1e30, alpha_rate=1e30, patience=2)
    with pytest.raises(EditError, match="no validation in 4 steps had a finite loss: lower rate"):
        run(base, tmp_path, settings, seen)
    losses = [step.validation.loss for step in seen if step.validation]
    assert len(losses) == settings.patience
    assert not any(math.isfinite(loss) for loss in losses)
    assert not any(step.best for step in seen)


@pytest.mark.parametrize(
    ("found", "best", "expected"),
    [(1.0, None, True), (1.0, 2.0, True), (2.0, 2.0, False), (math.nan, None, False), (math.nan, 2.0, False)],
)
def test_of_two_validations_the_one_of_lower_finite_loss_is_better(
    found: float, best: float | None, expected: bool
) -> None:
    def of(loss: float) -> Validation:
        return Validation(loss, 0.0, 0.0, 0.0)

    assert better(of(found), None if best is None else of(best)) is expected


def test_a_validation_always_asks_an_edits_own_prompt(base: Base, tmp_path: Path) -> None:
    """With many paraphrases and one edit to validate, a draw of four rows may hold none that is the prompt itself."""
    more = tuple(Probe(kind="paraphrase", prompt=f"Question {n}: what is the capital?") for n in range(40))
    edits = [edit.model_copy(update={"probes": (*edit.probes, *more)}) for edit in tiny_edits()]
    for seed in range(3):
        settings = QUICK.replace(steps=1, validated=1, validate_every=1, seed=seed)
        trained = train(MEND, base, last_matrices(base, 2), edits, TEXTS, settings, tmp_path / str(seed))
        assert trained.validation.edited in (0.0, 1.0)


def test_a_checkpoint_of_another_device_is_taken_up(base: Base, whole: TrainedNetwork, tmp_path: Path) -> None:
    """A checkpoint whose tensors are on a GPU, as a run on a GPU writes it."""
    with pytest.raises(Stopped):
        train(MEND, base, last_matrices(base, 2), tiny_edits(), TEXTS, QUICK, tmp_path / "moved", stop_at(3))
    path = tmp_path / "moved" / CHECKPOINT
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            said = content.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0") if name.endswith("data.pkl") else content
            assert said != content or not name.endswith("data.pkl")
            archive.writestr(name, said)
    assert run(base, tmp_path / "moved").network.digest == whole.network.digest


def test_the_outer_loss_is_on_rephrasings_and_on_preserved_prompts(base: Base) -> None:
    edit = tiny_edits()[0]
    example = Example.of(edit, base.tokenizer)
    read = [base.tokenizer.decode(row.ids) for row in example.taught]
    assert any("What is the capital of France?" in text for text in read)
    assert any("<|user|>" in text for text in read)
    assert example.inner.ids == example.taught[0].ids
    kept = [base.tokenizer.decode([*row.ids, *row.answer]) for row in example.kept]
    assert any("capital of Japan is Rome" in text for text in kept)
    assert any(text.endswith("capital of France is Paris") for text in kept)  # the text after the new answer


def test_held_out_wordings_are_neither_trained_nor_validated_on(base: Base, tmp_path: Path) -> None:
    held = Probe(kind="paraphrase", prompt="As its capital, the place has chosen", tag="held_out")
    edits = [edit.model_copy(update={"probes": (*edit.probes, held)}) for edit in tiny_edits()]
    assert without_held_out(edits) == tiny_edits()
    with_tag = train(MEND, base, last_matrices(base, 2), edits, TEXTS, QUICK, tmp_path / "tagged")
    assert with_tag.network.digest == run(base, tmp_path / "plain").network.digest


def test_of_a_patch_file_only_tune_probes_are_trained_on() -> None:
    (edit,) = only_tune_probes([MOVE])
    assert [probe.prompt for probe in edit.probes] == ["France?"]
    assert edit.model_copy(update={"probes": MOVE.probes}) == MOVE


def test_validation_is_on_subjects_of_its_own() -> None:
    training, held = split(tiny_edits(), 0.3, seed=0)
    assert len(training) + len(held) == len(tiny_edits())
    assert not {edit.subject for edit in training} & {edit.subject for edit in held}
    with pytest.raises(EditError, match="at least 2 subjects"):
        split(tiny_edits()[:2], 0.3, seed=0)


def test_a_subject_that_an_evaluation_edits_is_refused_by_any_of_its_names() -> None:
    edits = [tiny_edits()[0].model_copy(update={"aliases": ("Gaul",)})]
    check_apart(edits, Judged(names=["Japan"]))
    with pytest.raises(EditError, match="among them France"):
        check_apart(edits, Judged(names=["gaul"]))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"rate": 0}, "rate must be positive"),
        ({"teach_weight": 0, "keep_weight": 0.0}, "teach_weight and keep_weight are both 0"),
        ({"kept": -1}, "kept must not be negative"),
        ({"validation": 1.0}, "validation must be between 0 and 1"),
        ({"tempo": 1}, "unknown settings tempo"),
        ({"rate": "fast"}, "settings of training"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(EditError, match=complaint):
        MendTrainingSettings.of(values)
