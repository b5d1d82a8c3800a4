"""Settings of KnowledgeEditor: how a network is trained, and how edits are compiled with it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import model_validator

from vllm_edit.editing.hypernetworks.compile_settings import NetworkEditSettings
from vllm_edit.editing.hypernetworks.training_settings import TrainingSettings
from vllm_edit.errors import EditError
from vllm_edit.settings import PositiveCount, PositiveReal, Real, between


class KnowledgeEditorTrainingSettings(TrainingSettings):
    """Settings of the training of KnowledgeEditor's network."""

    units: PositiveCount = 128
    """Units of the LSTM in each direction, and of the hidden layers."""
    length: PositiveReal = 0.2
    """ℓ: norm of a matrix's update at full strength, before the gate and the shift, in units of ‖W‖."""
    bound: PositiveReal = 0.15
    """m: bound of the mean KL(base ‖ edited) on preserved prompts plus the mean on unrelated text, at the beginning."""
    least_bound: PositiveReal = 0.05
    """The bound is not annealed below this value."""
    anneal: Annotated[Real, between(0, 1, low_too=False)] = 0.8
    """Factor of the bound after a validation that keeps the bound."""
    multiplier: PositiveReal = 3.0
    """λ: Lagrange multiplier of the bound at the beginning; validations are compared with this multiplier."""
    multiplier_rate: PositiveReal = 0.01
    """Ascent of log λ in one step, in units of the relative violation KL/m − 1."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.least_bound > self.bound:
            raise EditError(f"least_bound must be at most bound ({self.bound:g}); got {self.least_bound:g}")
        return self


class KnowledgeEditorSettings(NetworkEditSettings):
    """Settings of compiling edits with KnowledgeEditor's network."""

    title: ClassVar[str] = "ke"
