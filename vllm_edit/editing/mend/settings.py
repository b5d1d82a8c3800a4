"""Settings of MEND: how a network is trained, and how edits are compiled with it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from vllm_edit.editing.checked_settings import (
    CountFromZero,
    MethodSettings,
    PositiveCount,
    PositiveReal,
    Real,
    RealFromZero,
    Seed,
    between,
    checked,
)
from vllm_edit.errors import EditError


@checked
class TrainingSettings(MethodSettings):
    """How a hypernetwork is trained. Every quantity is relative, so that no model needs its own."""

    method: ClassVar[str] = "training"

    steps: PositiveCount = 1200
    """Most updates."""
    edits: PositiveCount = 8
    """Edits in one step."""
    taught: PositiveCount = 3
    """Rephrasings of an edit in one step: prompt, chat turn, paraphrases, other names, one step further."""
    kept: CountFromZero = 4
    """Prompts of an edit in one step whose answers must stay: its locality probes, and what follows its answer."""
    texts: CountFromZero = 2
    """Passages of unrelated text in one step."""
    teach_weight: RealFromZero = 0.3
    """c_edit: weight of the mean NLL of the new answers on rephrasings."""
    keep_weight: RealFromZero = 1.0
    """c_loc: weight of KL(base ‖ edited), the mean over kept prompts plus the mean over unrelated text."""
    rate: PositiveReal = 1e-3
    """Adam's first step for the network; like that of α it falls along a cosine to 5 % over `steps`."""
    alpha_rate: PositiveReal = 5e-4
    """Adam's step for the α of every matrix, in units of the matrix's root mean square weight."""
    alpha: PositiveReal = 1e-2
    """Where every α starts, in the same units."""
    clip: PositiveReal = 10.0
    """Most norm of the gradient of the whole network."""
    rank: PositiveCount = 128
    """Rank of the network's layers."""
    warm: PositiveCount = 128
    """Edits whose gradients are taken into the running statistics before the first step."""
    validation: Annotated[Real, between(0, 1, low_too=False, high_too=False)] = 0.15
    """Share of the subjects whose edits are for validation."""
    validated: PositiveCount = 64
    """Most edits of a validation."""
    validate_every: PositiveCount = 100
    """Steps between validations; a checkpoint is written after each."""
    patience: PositiveCount = 8
    """Validations without a lower loss after which training stops."""
    seed: Seed = 0
    """Of the network, the split and the draws."""
    batch_tokens: PositiveCount = 4096
    """Most tokens in one forward pass, padding included: the memory budget."""

    def __post_init__(self) -> None:
        if self.teach_weight == self.keep_weight == 0:
            raise EditError("teach_weight and keep_weight are both 0, so nothing would be learnt: raise one of them")


@checked
class MendSettings(MethodSettings):
    """How edits are compiled with a trained network."""

    method: ClassVar[str] = "mend"
    advice: ClassVar[str] = "train the network longer, on edits like this one, or compile it apart from the others"

    margin: Real | None = 3.0
    """Lead in nats of the target after the edit's prompt, plain and as a chat turn, up to which the network's update is
    scaled (the least of the scales that reach it). None: the network's own length, as published."""
    served_margin: Real = 0.0
    """Least lead in nats of the target after the edit's prompt, with the whole delta as it will be saved."""
    batch_tokens: PositiveCount = 8192
    """Most tokens in one forward pass, padding included: the memory budget. Not part of the identity."""
    on_missed: Literal["error", "report"] = "error"
    """What an edit beyond a limit causes: UnsafeEdit, or a line in the report. Not part of the identity."""

    def identity(self, network: str) -> dict[str, Any]:
        """The JSON-able settings that a compiled patch is identified by, with the network's digest."""
        return self.lasting() | {"network": network}
