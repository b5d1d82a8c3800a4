"""Settings of the closed-form editors. They are part of a compiled patch's identity unless a docstring excludes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from vllm_edit.editing.method_settings import CompileSettings
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.settings import (
    CountFromZero,
    PositiveCount,
    PositiveReal,
    Real,
    RealFromZero,
    Share,
)

FORMS = ("plain", "chat", "alias", "tune")


def _known_forms(forms: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [form for form in forms if form not in FORMS]:
        raise ValueError(f"contains the unknown form {unknown[0]!r}; the forms are {', '.join(FORMS)}")
    if "plain" not in forms:
        raise ValueError("must contain 'plain'")
    return forms


def _with_place(text: str) -> str:
    if "{}" not in text:
        raise ValueError("must contain {}, the placeholder of the subject")
    return text


class ClosedFormSettings(CompileSettings):
    """Settings that closed-form methods share. All quantities are relative, so that the defaults fit every model."""

    scoped: ClassVar[Mapping[str, JSONValue]] = MappingProxyType(
        {
            "same_ending": 0,
            "first_rows": "all",
            "learning_rate": 0.3,
            "norm_penalty": 0.001,
            "margin": 4.0,
            "context_margin": 3.0,
        }
    )
    """Defaults for patches with scope subject. Their updates do not act on other subjects. They can therefore be
    stronger, which changes more wordings, and need not preserve the keys of other names."""

    # Keys: the forms of an edit's prompt that provide columns.
    forms: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_known_forms)] = FORMS
    """plain: the prompt. chat: the prompt in the chat template. alias: the prompt with each alias instead of the
    subject. tune: the `tune` paraphrase probes. Forms that the edit or the tokenizer does not support are skipped."""
    merge_cosine: Share = 0.9
    """Forms of one edit whose keys' whitened cosine exceeds this are averaged into one column."""
    group_cosine: Share = 0.9
    """Edits of one subject whose keys' whitened cosine exceeds this become one key group with one residual."""
    max_columns: PositiveCount = 4
    """Maximum number of columns of a key group besides those of its plain prompts; columns cost no rank (see
    the solver)."""

    most_kept: CountFromZero = 8
    """Maximum number of `tune` locality probes per edit whose keys the update must not move (columns of share 0). 0:
    none."""
    ending: bool = True
    """Also preserve the keys at the answer's last token, so that the base's next token follows the answer."""
    same_ending: CountFromZero = 8
    """For a site at the subject's last token: number of names sampled for each ending of the subject's name, whose mean
    key the update must not move. 0: none."""
    opening: bool = True
    """For a site at the subject's last token: also edit the key of the subject at the beginning of a text."""

    # Residuals: the training of δ.
    steps: CountFromZero = 80
    """Maximum number of steps for an edit in one round of training. The steps of several `rounds` add up."""
    rounds: PositiveCount = 8
    """Maximum number of rounds of training and checking; the next round also trains on rows that failed the check."""
    learning_rate: PositiveReal = 0.1
    """Initial and maximum step length, in units of the residual stream's norm at the site."""
    shortening: CountFromZero = 0
    """Number of bisections that shorten a trained δ: they look for its smallest multiple, at least a half, with which
    every row keeps its margin. 0: none. With 3, and `learning_rate` 0.2, an edit is cheaper (docs/methods.md)."""
    first_rows: Literal["bare", "text", "all"] = "bare"
    """Rows of the first round; other rows are added if they fail a check. bare: the prompt, as text and as a chat turn.
    text: also the contexts of plain text. all: also chat contexts and other forms."""
    whole_words: bool = True
    """Train the answer to end if the model would continue its last word after the bare prompt ("Nissani" for
    "Nissan")."""
    fast_products: bool = True
    """Multiply in bfloat16 during training if the processor supports it. The result is checked in full precision."""
    margin: RealFromZero | None = None
    """Required lead of the target in nats at every target position after the bare prompt; None takes the site's."""
    context_margin: RealFromZero = 1.0
    """Required lead in nats in other contexts and forms, if they are trained on."""
    kl_factor: RealFromZero = 0.0625
    """Weight of KL(base ‖ edited) on prompts that should not change."""
    norm_penalty: RealFromZero = 0.01
    """Weight of the mean square of δ, in units of the residual stream's RMS."""
    clamp: PositiveReal = 4.0
    """Maximum ‖δ‖, in units of the residual stream's norm at the site."""
    essence: Annotated[str, AfterValidator(_with_place)] = "{} is a"
    """Prompt about the subject that should not change, for edits without `tune` locality probes."""
    damping: RealFromZero | None = None
    """λ relative to the mean k̄ᵀC⁻¹k̄ of a key group's columns; None takes the site's."""

    # Health: limits for compiled edits.
    served_margin: Real = 0.1
    """Minimum lead of the target in nats in every context, under the final, jointly solved delta."""
    least_denominator: RealFromZero = 0.01
    """Minimum k̄ᵀC⁻¹k̄ / d_in. Below it, the key resembles those of ordinary text, and the edit would act on all text."""
    most_norm: PositiveReal = 1.0
    """Maximum ‖ΔW‖ / ‖W‖ (Frobenius) of one key group's part of the update."""

    def identity(self, damping: float, margin: float) -> JSONObject:
        """The JSON-serialisable settings that identify a compiled patch, with the λ and the margin that were used."""
        return self.lasting() | {"forms": list(self.forms), "damping": damping, "margin": margin}
