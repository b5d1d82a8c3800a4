"""What a model's generation_config asks of greedy answers.

vLLM's server takes these from generation_config.json for requests that do not say another: at temperature 0 they are
all that it takes from there. So they hold wherever a model answers: what transformers knows beyond them (beams, n-grams
that may not repeat, …) no server would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Penalties:
    """By vLLM's names and defaults (`SamplingParams`), which change nothing."""

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @classmethod
    def of(cls, config: Any) -> Penalties:
        """Those of a generation config, or of whatever else has them; one that is not there, or None, is neutral."""
        found = {name: getattr(config, name, None) for name in cls.__dataclass_fields__}
        return cls(**{name: float(value) for name, value in found.items() if value is not None})

    def applied(
        self, logits: torch.Tensor, prompts: Sequence[Sequence[int]], made: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] of what comes after prompts' ids and the ids `made` behind them.

        l / repetition where l > 0, else l · repetition, for every token of prompt or answer (Keskar et al. 2019,
        arXiv 1909.05858); then − frequency · (times in the answer) − presence · (is in the answer).
        """
        if self == Penalties():
            return logits
        counts, seen = torch.zeros_like(logits), torch.zeros_like(logits, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(zip(prompts, made, strict=True)):
            tokens = torch.tensor([*prompt, *answer], device=logits.device)
            seen[row, tokens] = True
            new = tokens[len(prompt) :]
            counts[row].index_add_(0, new, torch.ones_like(new, dtype=logits.dtype))
        factor = torch.where(logits > 0, 1 / self.repetition_penalty, self.repetition_penalty)
        penalised = torch.where(seen, logits * factor, logits)
        return penalised - self.frequency_penalty * counts - self.presence_penalty * (counts > 0)
