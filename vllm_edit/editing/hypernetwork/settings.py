"""Settings of MEND: how a network is trained, and how edits are compiled with it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

from vllm_edit.errors import EditError

S = TypeVar("S", "TrainingSettings", "MendSettings")
_RUN_TIME = ("batch_tokens", "on_missed")


@dataclass(frozen=True)
class TrainingSettings:
    """How a hypernetwork is trained. Every quantity is relative, so that no model needs its own."""

    steps: int = 1200
    """Most updates."""
    edits: int = 8
    """Edits in one step."""
    taught: int = 3
    """Rephrasings of an edit in one step: prompt, chat turn, paraphrases, other names, one step further."""
    kept: int = 4
    """Prompts of an edit in one step whose answers must stay: its locality probes, and what follows its answer."""
    texts: int = 2
    """Passages of unrelated text in one step."""
    teach_weight: float = 0.3
    """c_edit: weight of the mean NLL of the new answers on rephrasings."""
    keep_weight: float = 1.0
    """c_loc: weight of KL(base ‖ edited), the mean over kept prompts plus the mean over unrelated text."""
    rate: float = 1e-3
    """Adam's first step for the network; like that of α it falls along a cosine to 5 % over `steps`."""
    alpha_rate: float = 5e-4
    """Adam's step for the α of every matrix, in units of the matrix's root mean square weight."""
    alpha: float = 1e-2
    """Where every α starts, in the same units."""
    clip: float = 10.0
    """Most norm of the gradient of the whole network."""
    rank: int = 128
    """Rank of the network's layers."""
    warm: int = 128
    """Edits whose gradients are taken into the running statistics before the first step."""
    validation: float = 0.15
    """Share of the subjects whose edits are for validation."""
    validated: int = 64
    """Most edits of a validation."""
    validate_every: int = 100
    """Steps between validations; a checkpoint is written after each."""
    patience: int = 8
    """Validations without a lower loss after which training stops."""
    seed: int = 0
    """Of the network, the split and the draws."""
    batch_tokens: int = 4096
    """Most tokens in one forward pass, padding included: the memory budget."""

    def __post_init__(self) -> None:
        may_be_zero = ("kept", "texts", "teach_weight", "keep_weight", "seed")
        problems = [
            f"{field.name} must be positive; got {getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in may_be_zero and getattr(self, field.name) <= 0
        ]
        problems += [
            f"{name} must not be negative; got {getattr(self, name)}"
            for name in may_be_zero[:-1]
            if getattr(self, name) < 0
        ]
        if self.teach_weight == self.keep_weight == 0:
            problems.append("teach_weight and keep_weight are both 0, so nothing would be learnt: raise one of them")
        if not 0 < self.validation < 1:
            problems.append(f"validation must lie between 0 and 1; got {self.validation}")
        if problems:
            raise EditError("settings: " + "; ".join(problems))

    @classmethod
    def of(cls, values: dict[str, Any]) -> TrainingSettings:
        """Settings from plain values, as a CLI gives them. Raises EditError for unknown names and wrong values."""
        return _of(cls, values, "training")


@dataclass(frozen=True)
class MendSettings:
    """How edits are compiled with a trained network."""

    advice: ClassVar[str] = "train the network longer, on edits like this one, or compile it apart from the others"

    margin: float | None = 3.0
    """Lead in nats of the target after the edit's prompt, plain and as a chat turn, up to which the network's update is
    scaled (the least of the scales that reach it). None: the network's own length, as published."""
    served_margin: float = 0.0
    """Least lead in nats of the target after the edit's prompt, with the whole delta as it will be saved."""
    batch_tokens: int = 8192
    """Most tokens in one forward pass, padding included: the memory budget. Not part of the identity."""
    on_missed: Literal["error", "report"] = "error"
    """What an edit beyond a limit causes: UnsafeEdit, or a line in the report. Not part of the identity."""

    def __post_init__(self) -> None:
        problems = []
        if self.batch_tokens <= 0:
            problems.append(f"batch_tokens must be positive; got {self.batch_tokens}")
        for name in ("margin", "served_margin"):
            value = getattr(self, name)
            if (name, value) != ("margin", None) and not math.isfinite(value):  # a word raises TypeError here
                problems.append(f"{name} must be a number; got {value}")
        if self.on_missed not in ("error", "report"):
            problems.append(f"on_missed must be error or report; got {self.on_missed!r}")
        if problems:
            raise EditError("settings: " + "; ".join(problems))

    def identity(self, network: str) -> dict[str, Any]:
        """The JSON-able settings that a compiled patch is identified by, with the network's digest."""
        return {key: value for key, value in asdict(self).items() if key not in _RUN_TIME} | {"network": network}

    @classmethod
    def of(cls, values: dict[str, Any]) -> MendSettings:
        """Settings from plain values, as a CLI or a manifest holds them. Raises EditError as above."""
        return _of(cls, values, "mend")


def _of(cls: type[S], values: dict[str, Any], what: str) -> S:
    known = {field.name for field in fields(cls)}
    if unknown := sorted(set(values) - known):
        raise EditError(f"unknown settings {', '.join(unknown)}; settings of {what} are {', '.join(sorted(known))}")
    try:
        return cls(**values)
    except TypeError as error:  # a word where a number belongs
        raise EditError(f"settings of {what}: {error}") from None
