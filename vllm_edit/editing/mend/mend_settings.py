"""Settings of MEND: how a network is trained, and how edits are compiled with it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from vllm_edit.editing.method_settings import RUN_TIME, MethodSettings
from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONObject
from vllm_edit.settings import (
    CountFromZero,
    PositiveCount,
    PositiveReal,
    Real,
    RealFromZero,
    Seed,
    between,
)


class TrainingSettings(MethodSettings):
    """Settings of the training of a hypernetwork. Quantities are relative, so that the defaults fit every model."""

    title: ClassVar[str] = "training"

    steps: PositiveCount = 1200
    """Maximum number of updates."""
    edits: PositiveCount = 8
    """Edits in one step."""
    taught: PositiveCount = 3
    """Rephrasings of each edit in one step: prompt, chat turn, paraphrase probes and portability probes."""
    kept: CountFromZero = 4
    """Preserved prompts of each edit in one step: its locality probes, and the continuation of its answer."""
    texts: CountFromZero = 2
    """Passages of unrelated text in one step."""
    teach_weight: RealFromZero = 0.3
    """c_edit: weight of the mean NLL of the new answers on rephrasings."""
    keep_weight: RealFromZero = 1.0
    """c_loc: weight of KL(base ‖ edited), the mean over preserved prompts plus the mean over unrelated text."""
    rate: PositiveReal = 1e-3
    """Adam's initial learning rate for the network; over `steps` it falls to 5 % along a cosine, like the rate of α."""
    alpha_rate: PositiveReal = 5e-4
    """Adam's initial learning rate for the α of every matrix, in units of the matrix's root mean square weight."""
    alpha: PositiveReal = 1e-2
    """Initial value of every α, in the same units."""
    clip: PositiveReal = 10.0
    """Maximum norm of the gradient of the whole network; a larger gradient is clipped."""
    rank: PositiveCount = 128
    """Rank of the network's layers."""
    warm: PositiveCount = 128
    """Edits whose gradients initialise the running statistics before the first step."""
    validation: Annotated[Real, between(0, 1, low_too=False, high_too=False)] = 0.15
    """Share of the subjects that are reserved, with all their edits, for validation."""
    validated: PositiveCount = 64
    """Maximum number of edits in a validation."""
    validate_every: PositiveCount = 100
    """Steps between validations; each validation is followed by a checkpoint."""
    patience: PositiveCount = 8
    """Number of validations without a lower loss after which training stops."""
    seed: Seed = 0
    """Random seed of the network's initial values, the validation split and the sampled rows."""
    batch_tokens: Annotated[PositiveCount, RUN_TIME] = 4096
    """Maximum number of tokens in one forward pass, padding included: the memory budget."""

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.teach_weight == self.keep_weight == 0:
            raise EditError(
                "teach_weight and keep_weight are both 0, so training would have no loss: raise one of them"
            )
        return self


class MendSettings(MethodSettings):
    """Settings of compiling edits with a trained network."""

    title: ClassVar[str] = "mend"
    advice: ClassVar[str] = "train the network longer, on edits like this one, or compile it apart from the others"

    margin: Real | None = 3.0
    """Required lead of the target in nats after the edit's prompt, plain and as a chat turn. The network's update is
    scaled by the smallest of the tried scales that reaches this lead. None: the network's own length, as published."""
    served_margin: Real = 0.0
    """Minimum lead of the target in nats after the edit's prompt, under the whole delta as saved."""
    batch_tokens: Annotated[PositiveCount, RUN_TIME] = 8192
    """Maximum number of tokens in one forward pass, padding included: the memory budget. Not part of the identity."""
    on_missed: Annotated[Literal["error", "report"], RUN_TIME] = "error"
    """Handling of an edit that misses its target: raise UnsafeEdit, or add a line to the report. Not part of the
    identity."""

    def identity(self, network: str) -> JSONObject:
        """The JSON-serialisable settings that identify a compiled patch, with the network's digest."""
        return self.lasting() | {"network": network}
