"""Settings of the closed-form editor. They are part of a compiled patch's identity, except where a field says not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from vllm_edit.editing.checked_settings import (
    CountFromZero,
    MethodSettings,
    PositiveCount,
    PositiveReal,
    Real,
    RealFromZero,
    Share,
    checked,
)

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, how much there is)."""

FORMS = ("plain", "chat", "alias", "tune")


def _known_forms(forms: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [form for form in forms if form not in FORMS]:
        raise ValueError(f"has the unknown form {unknown[0]!r}, and must be of {', '.join(FORMS)}")
    if "plain" not in forms:
        raise ValueError("must contain 'plain'")
    return forms


def _with_place(text: str) -> str:
    if "{}" not in text:
        raise ValueError("must contain {}, the subject's place")
    return text


@checked
class RomeSettings(MethodSettings):
    """How edits are compiled at a site. The defaults need no tuning per model: every quantity is relative."""

    method: ClassVar[str] = "rome"
    scoped: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "same_ending": 0,
            "first_rows": "all",
            "learning_rate": 0.3,
            "norm_penalty": 0.001,
            "margin": 4.0,
            "context_margin": 3.0,
        }
    )
    """Other subjects never meet the update of a patch with scope subject. So it is stronger, and more wordings follow;
    and no key of another name is kept."""

    # Keys: which forms of an edit's prompt give columns.
    forms: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_known_forms)] = FORMS
    """plain: the prompt. chat: the prompt in the chat template. alias: each alias in the subject's place. tune: the
    `tune` paraphrase probes. A form that the edit or the tokenizer does not have is skipped."""
    merge_cosine: Share = 0.9
    """Forms of one edit whose keys' whitened cosine exceeds this are averaged into one column."""
    group_cosine: Share = 0.9
    """Edits of one subject whose keys' whitened cosine exceeds this become one key group with one residual."""
    max_columns: PositiveCount = 4
    """Most columns of a key group besides its edits' plain prompts'; columns cost no rank (see closed_form)."""

    most_kept: CountFromZero = 8
    """Most `tune` locality probes of an edit whose keys the update must not move (columns of share 0). 0: none."""
    ending: bool = True
    """Keep also the keys at the answer's last token, so that the answer ends as the base would end it."""
    same_ending: CountFromZero = 8
    """For a site at the subject's last token: names drawn for each ending of the subject's name, whose mean key the
    update must not move. 0: none."""
    opening: bool = True
    """For a site at the subject's last token: edit also the key of the subject at the beginning of a text."""

    # Residuals: how δ is trained.
    steps: CountFromZero = 80
    """Most steps for an edit."""
    rounds: PositiveCount = 8
    """Most rounds of training and checking: rows that miss in a check are trained on in the next round."""
    learning_rate: PositiveReal = 0.1
    """A step's length, in units of the residual stream's norm at the site: no model needs its own."""
    first_rows: Literal["bare", "text", "all"] = "bare"
    """Rows that are trained on from the start; the others join where they miss. bare: the prompt, as text and as a chat
    turn. text: also under the contexts of plain text. all: also in chat contexts and in other forms."""
    whole_words: bool = True
    """Train the answer to end where, after the bare prompt, its last word would go on ("Nissani" for "Nissan")."""
    whole_rows: bool = False
    """Train on whole rows under the whole update from the first step on, not only where that is needed."""
    fast_products: bool = True
    """Multiply in bfloat16 in training where the processor has units for it. What is trained is checked in full."""
    margin: RealFromZero | None = None
    """The target is to lead by so many nats at every target position after the bare prompt; None takes the site's."""
    context_margin: RealFromZero = 1.0
    """The same under other contexts and in other forms, where they are trained on."""
    kl_factor: RealFromZero = 0.0625
    """Weight of KL(base ‖ edited) on prompts that should not change."""
    norm_penalty: RealFromZero = 0.01
    """Weight of the mean square of δ in units of the residual stream's RMS."""
    clamp: PositiveReal = 4.0
    """‖δ‖ stays below so many times the norm of the residual stream at the site."""
    essence: Annotated[str, AfterValidator(_with_place)] = "{} is a"
    """The prompt that should not change, about the subject, where an edit has no `tune` locality probes."""
    residual_rule: Literal["shift", "reference"] = "shift"
    """shift: the residual is δ. reference: r-ROME's reference code, v0 + δ − W k̄, for comparison."""
    damping: RealFromZero | None = None
    """λ relative to the mean k̄ᵀC⁻¹k̄ of a key group's columns; None takes the site's."""

    # Health: what is refused.
    served_margin: Real = 0.1
    """Least margin in nats under every context with the final, jointly solved delta."""
    least_denominator: RealFromZero = 0.01
    """Least k̄ᵀC⁻¹k̄ / d_in: below it the key lies where ordinary text lies, and the edit would act on all of it."""
    most_norm: PositiveReal = 1.0
    """Most ‖ΔW‖ / ‖W‖ (Frobenius) of one key group's part of the update."""

    # Run time: not part of the identity.
    batch_tokens: PositiveCount = 8192
    """Most tokens in one forward pass, padding included: the memory budget. Not part of the identity."""
    on_missed: Literal["error", "report"] = "error"
    """What an edit beyond a health limit causes: UnsafeEdit, or a line in the report. Not part of the identity."""

    def identity(self, damping: float, margin: float) -> dict[str, Any]:
        """The JSON-able settings that a compiled patch is identified by, with the λ and the margin that were used."""
        return self.lasting() | {"forms": list(self.forms), "damping": damping, "margin": margin}
