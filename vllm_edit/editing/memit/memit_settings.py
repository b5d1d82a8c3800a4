"""Settings of MEMIT and AlphaEdit. They are part of a compiled patch's identity unless a docstring excludes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from vllm_edit.editing.closed_form_settings import ClosedFormSettings
from vllm_edit.json_value import JSONValue
from vllm_edit.settings import PositiveCount, PositiveReal, RealFromZero


class MemitSettings(ClosedFormSettings):
    """Settings of spreading many edits over the layers of a site."""

    title: ClassVar[str] = "memit"
    scoped: ClassVar[Mapping[str, JSONValue]] = MappingProxyType({**ClosedFormSettings.scoped, "checked_rows": "all"})

    margin: RealFromZero | None = 1.5
    """Required lead of the target in nats at every target position after the bare prompt; None takes the site's."""
    context_margin: RealFromZero = 0.5
    """Required lead in nats of rows that a correction trains on, and in the first training of other contexts and forms,
    if they are trained on."""
    kl_factor: RealFromZero = 0.0625
    """Weight of KL(base ‖ edited) on prompts that should not change, in the first training. Corrections have no such
    prompts."""
    norm_penalty: RealFromZero = 0.01
    """Weight of the mean square of δ, in units of the residual stream's RMS. In a correction: of that round's part, not
    of the sum."""
    clamp: PositiveReal = 4.0
    """Maximum ‖δ‖, in units of the residual stream's norm at the site. It holds for the first training and for each
    correction's part, not for their sum."""
    damping: RealFromZero | None = 0.1
    """λ relative to the mean k̄ᵀC⁻¹k̄ of a key group's columns; None takes the site's. EMMET's μ and MEMIT's λ."""
    checked_rows: Literal["bare", "all"] = "bare"
    """Rows in which the target must lead, else they are corrected. bare: the prompt, as text and as a chat turn. all:
    also in contexts and other forms."""
    spreads: PositiveCount = 2
    """Number of passes over the layers; each pass adds what is still missing of the residuals."""
    most_norm: PositiveReal = 2.0
    """Maximum ‖ΔW‖ / ‖W‖ (Frobenius) of one key group's part of the update at a layer. Early layers of small models
    have small W and need more than one layer's limit in r-ROME."""
    room: PositiveReal = 2.0
    """Maximum number of preserved columns, in units of d_in. With damping they are approximately preserved, so that
    there may be more of them than dimensions."""


class AlphaEditSettings(MemitSettings):
    """Settings of edits in the null space of the second moment."""

    title: ClassVar[str] = "alphaedit"

    null_space: PositiveReal = 0.5
    """Eigenvectors of C belong to the null space if their eigenvalue is below this value, in units of the mean
    eigenvalue (of C's median diagonal in layers with very long keys)."""
