"""Average indirect effects of causal tracing over prompts, per kind of state, layer and token role.

arXiv 2202.05262, figure 2 and appendix B.2. A role's tokens are first averaged within each prompt, so that a long
subject has the same weight as a short one (the paper's code pools the tokens of all prompts).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

from vllm_edit.artefacts.site import Token
from vllm_edit.evaluation.intervals import Z95
from vllm_edit.json_value import JSONObject
from vllm_edit.tracing.corruption import KINDS, Kind
from vllm_edit.tracing.trace import Trace, TracedPrompt

Role = Literal["first_subject", "middle_subject", "last_subject", "first_after", "further", "last"]
ROLES: Mapping[Role, str] = {
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_after": "first subsequent token",
    "further": "further tokens",
    "last": "last token",
}
"""Role → label. Every token has one role. The subject's roles have priority over the others, "last subject" over "first
subject", and "last" over "first subsequent": a one-token subject is a last subject token, even at the prompt's end."""

SUBJECT_ROLES: tuple[Role, ...] = ("first_subject", "middle_subject", "last_subject")
KIND_LABELS: Mapping[Kind, str] = {"hidden": "hidden state", "mlp": "MLP", "attention": "attention"}
_SITES: Mapping[Role, Token] = {"last_subject": "subject_last", "last": "last"}


@dataclass(frozen=True)
class Mean:
    """A mean over `n` prompts with its 95 % interval, mean ± 1.96 s/√n; there is no interval for one prompt."""

    value: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        value = statistics.fmean(values)
        if len(values) < 2:
            return cls(value, None, None, len(values))
        half = Z95 * statistics.stdev(values) / math.sqrt(len(values))
        return cls(value, value - half, value + half, len(values))


@dataclass(frozen=True)
class Peak:
    """The layer at which a kind of state has its strongest average effect in a role."""

    kind: Kind
    role: Role
    layer: int
    mean: Mean


@dataclass(frozen=True)
class AverageEffects:
    """A trace with its averages. Roles that occur in no traced prompt are omitted."""

    trace: Trace

    @cached_property
    def clean(self) -> Mean:
        return Mean.of([prompt.clean for prompt in self.trace.prompts])

    @cached_property
    def corrupted(self) -> Mean:
        return Mean.of([prompt.corrupted for prompt in self.trace.prompts])

    @cached_property
    def total(self) -> Mean:
        return Mean.of([prompt.total_effect for prompt in self.trace.prompts])

    @cached_property
    def by_kind(self) -> Mapping[Kind, Mapping[Role, tuple[Mean, ...]]]:
        """kind → role → one mean for each layer."""
        tokens = [_tokens_of(prompt) for prompt in self.trace.prompts]
        return {
            kind: {
                role: tuple(Mean.of(values) for values in zip(*rows, strict=True))
                for role in ROLES
                if (
                    rows := [
                        prompt.effects[kind][:, own[role]].mean(1).tolist()
                        for prompt, own in zip(self.trace.prompts, tokens, strict=True)
                        if role in own
                    ]
                )
            }
            for kind in KINDS
        }

    def peaks(self, kind: Kind) -> list[Peak]:
        """Each role's strongest layer, in the order of the roles."""
        found = []
        for role, means in self.by_kind[kind].items():
            layer = max(range(len(means)), key=lambda layer: means[layer].value)
            found.append(Peak(kind, role, layer, means[layer]))
        return found

    def outstanding(self, kind: Kind) -> Peak | None:
        """The peak whose interval is above that of every other role, if there is one."""
        first, *others = sorted(self.peaks(kind), key=lambda peak: -peak.mean.value)
        bounds = [(first.mean.low, other.mean.high) for other in others]
        clear = all(low is not None and high is not None and low > high for low, high in bounds)
        return first if others and clear else None

    def handover(self) -> int | None:
        """The first layer at which the last token's hidden state has a stronger effect than every subject token's; None
        if there is no such layer, or every prompt ends with its subject."""
        roles = self.by_kind["hidden"]
        subject = [roles[role] for role in SUBJECT_ROLES if role in roles]
        later = roles.get("last", ())
        return next(
            (layer for layer, last in enumerate(later) if last.value > max(own[layer].value for own in subject)), None
        )

    def suggested_site(self) -> tuple[int, Token]:
        """(layer, token) with the strongest MLP effect among the tokens that a site can have."""
        peaks = [peak for peak in self.peaks("mlp") if peak.role in _SITES]
        best = max(peaks, key=lambda peak: peak.mean.value)
        return best.layer, _SITES[best.role]

    def as_record(self) -> JSONObject:
        """All results as JSON-serialisable values."""
        layer, token = self.suggested_site()
        return {
            "base": self.trace.base,
            "layers": self.trace.depth,
            "settings": dict(self.trace.settings) | {"window": self.trace.window},
            "deviation": self.trace.deviation,
            "clean": asdict(self.clean),
            "corrupted": asdict(self.corrupted),
            "total_effect": asdict(self.total),
            "effects": {
                kind: {role: [asdict(mean) for mean in means] for role, means in roles.items()}
                for kind, roles in self.by_kind.items()
            },
            "outstanding": {kind: asdict(peak) if (peak := self.outstanding(kind)) else None for kind in KINDS},
            "handover": self.handover(),
            "suggested_site": {"layer": layer, "token": token},
            "prompts": [_record(prompt) for prompt in self.trace.prompts],
        }


def role_of(prompt: TracedPrompt, token: int) -> Role:
    """The role of the token at index `token`, which must not precede the subject."""
    if token <= prompt.last:
        return (
            "last_subject" if token == prompt.last else "first_subject" if token == prompt.first else "middle_subject"
        )
    if token == len(prompt.tokens) - 1:
        return "last"
    return "first_after" if token == prompt.last + 1 else "further"


def _tokens_of(prompt: TracedPrompt) -> dict[Role, list[int]]:
    """Role → its tokens, as indices from the subject's first token on, as in the prompt's effects."""
    found: dict[Role, list[int]] = {}
    for token in range(prompt.first, len(prompt.tokens)):
        found.setdefault(role_of(prompt, token), []).append(token - prompt.first)
    return found


def _record(prompt: TracedPrompt) -> JSONObject:
    return {
        "prompt": prompt.prompt,
        "subject": prompt.subject,
        "answer": prompt.answer,
        "believed": prompt.believed,
        "clean": prompt.clean,
        "corrupted": prompt.corrupted,
        "tokens": list(prompt.tokens[prompt.first :]),
        "roles": [role_of(prompt, token) for token in range(prompt.first, len(prompt.tokens))],
        "effects": {kind: effects.tolist() for kind, effects in prompt.effects.items()},
    }
