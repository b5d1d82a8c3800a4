"""Settings of MEND: how a network is trained, and how edits are compiled with it."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from vllm_edit.editing.hypernetworks.compile_settings import NetworkEditSettings
from vllm_edit.editing.hypernetworks.training_settings import TrainingSettings
from vllm_edit.errors import EditError
from vllm_edit.settings import PositiveCount, PositiveReal, RealFromZero


class MendTrainingSettings(TrainingSettings):
    """Settings of the training of MEND's network."""

    teach_weight: RealFromZero = 0.3
    """c_edit: weight of the mean NLL of the new answers on rephrasings."""
    keep_weight: RealFromZero = 1.0
    """c_loc: weight of KL(base ‖ edited), the mean over preserved prompts plus the mean over unrelated text."""
    alpha_rate: PositiveReal = 5e-4
    """Adam's initial learning rate for the α of every matrix, in units of the matrix's root mean square weight."""
    alpha: PositiveReal = 1e-2
    """Initial value of every α, in the same units."""
    rank: PositiveCount = 128
    """Rank of the network's layers."""

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.teach_weight == self.keep_weight == 0:
            raise EditError(
                "teach_weight and keep_weight are both 0, so training would have no loss: raise one of them"
            )
        return self


class MendSettings(NetworkEditSettings):
    """Settings of compiling edits with MEND's network."""

    title: ClassVar[str] = "mend"
