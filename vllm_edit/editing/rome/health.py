"""Health: measurements of every compiled edit, and the limits that an edit must meet.

An edit is refused if its key's leverage k̄ᵀC⁻¹k̄ is too small (the update would act on all text: the "disabling edits"
of arXiv 2403.07175), if its part of ΔW is too large relative to W, or if its target does not lead in every context and
form under the final delta as served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_edit.editing.settings import RomeSettings
from vllm_edit.errors import UnsafeEdit
from vllm_edit.text import change


@dataclass(frozen=True)
class EditHealth:
    """One edit as compiled. A margin is the target's lead over its best rival in nats, the minimum over all rows."""

    edit: int
    subject: str
    prompt: str
    target: str
    group: int
    denominator: float  # k̄ᵀC⁻¹k̄ / d_in of the group's first column; the mean over ordinary text is 1
    norm: float  # ‖ΔW of the edit's group‖ / ‖W‖, Frobenius
    steps: int
    trained: bool  # every trained row reached its margin
    trained_margin: float  # minimum over the trained rows at the end of training, under the group's own update
    served_margin: float  # under the delta of the whole patch
    rows: int  # checked contexts and forms
    passed: int  # rows in which the target leads

    def problems(self, limits: RomeSettings) -> list[str]:
        """One line for each limit that the edit exceeds: the value, the limit, and advice."""
        found = []
        if not self.denominator >= limits.least_denominator:
            found.append(
                f"its key's leverage kᵀC⁻¹k / d_in is {self.denominator:.2g}, at least {limits.least_denominator:g} is "
                "needed: the update would act on ordinary text; put words before the subject, or use another site"
            )
        if not self.norm <= limits.most_norm:
            found.append(
                f"‖ΔW‖/‖W‖ is {self.norm:.2g}, at most {limits.most_norm:g} is allowed; use a shorter or likelier "
                "target, another site, or raise `most_norm`"
            )
        if not self.served_margin >= limits.served_margin:
            trained = f"{self.trained_margin:.2f} when trained alone"
            advice = (
                "raise `steps` or `clamp`, or use another site"
                if not self.trained
                else "compile it apart from the edits it interferes with, or lower the damping"
            )
            found.append(
                f"the target leads by {self.served_margin:.2f} nats ({self.passed} of {self.rows} contexts pass, "
                f"{trained}), at least {limits.served_margin:g} under every context is needed; {advice}"
            )
        return found

    def as_record(self, limits: RomeSettings) -> dict[str, Any]:
        """The edit's JSON-serialisable entry in a report."""
        return asdict(self) | {"problems": self.problems(limits)}


def refuse_unsafe(measured: Sequence[EditHealth], limits: RomeSettings) -> None:
    """Check the limits, unless `on_missed` is "report".

    Raises:
        UnsafeEdit: edits exceed a limit; the message names all of them.
    """
    if limits.on_missed == "report":
        return
    lines = [
        f"edit {health.edit} ({change(health.prompt, health.target)}): {problem}"
        for health in measured
        for problem in health.problems(limits)
    ]
    if lines:
        raise UnsafeEdit("\n".join(lines))
