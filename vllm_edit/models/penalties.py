"""Penalties of a model's generation_config for greedy answers.

vLLM's server reads them from generation_config.json as defaults of requests; at temperature 0 it uses nothing else from
there. They therefore apply to all answers here. Other settings of transformers (beams, banned repetition of n-grams, …)
do not exist in the server and are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Penalties:
    """Penalties with vLLM's names and neutral defaults (`SamplingParams`)."""

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @classmethod
    def of(cls, config: object) -> Penalties:
        """The penalties of a generation config, or of any object with these attributes. Missing or None: neutral."""
        found = {name: getattr(config, name, None) for name in cls.__dataclass_fields__}
        return cls(**{name: float(value) for name, value in found.items() if value is not None})

    def applied(
        self, logits: torch.Tensor, prompts: Sequence[Sequence[int]], made: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Penalised logits [rows, vocabulary] of the token after the ids of the prompts and the ids `made` after them.

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
