"""Settings that the training of every hypernetwork has."""

from __future__ import annotations

from typing import Annotated, ClassVar

from vllm_edit.editing.method_settings import RUN_TIME, MethodSettings
from vllm_edit.settings import CountFromZero, PositiveCount, PositiveReal, Real, Seed, between


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
    rate: PositiveReal = 1e-3
    """Adam's initial learning rate for the network; over `steps` it falls to 5 % along a cosine, like all rates."""
    clip: PositiveReal = 10.0
    """Maximum norm of the gradient of the whole network; a larger gradient is clipped."""
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
    fast_products: bool = False
    """Multiply in bfloat16 if the processor supports it. It is faster, and gives a slightly different network."""
    stored_tokens: Annotated[CountFromZero, RUN_TIME] = 0
    """Maximum number of tokens whose states below the edited matrices are stored, so that each row runs through the
    lower blocks once. With stored states a resumed training equals an uninterrupted training only up to rounding."""
