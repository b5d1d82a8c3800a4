"""Settings of r-ROME. They are part of a compiled patch's identity unless a docstring excludes it."""

from __future__ import annotations

from typing import ClassVar, Literal

from vllm_edit.editing.closed_form_settings import ClosedFormSettings


class RomeSettings(ClosedFormSettings):
    """Settings of compiling edits at a site of one module."""

    title: ClassVar[str] = "rome"

    whole_rows: bool = False
    """Train on whole rows under the whole update from the first step, not only after a failed check."""
    residual_rule: Literal["shift", "reference"] = "shift"
    """shift: the residual is δ. reference: the residual is v0 + δ − W k̄ as in r-ROME's reference code, for
    comparison."""
