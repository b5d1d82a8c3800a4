"""Health: what is measured of every compiled edit, and what is refused.

An edit is refused by name when its key's leverage k̄ᵀC⁻¹k̄ is too small (the update would act on all text: the
"disabling edits" of arXiv 2403.07175), when its part of ΔW is too large beside W, or when, with the final delta served
as it will be, its target does not lead under every context and form.
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
    """One edit as compiled. Margins are leads of the target over its best rival, in nats, the least over all rows."""

    edit: int
    subject: str
    prompt: str
    target: str
    group: int
    denominator: float  # k̄ᵀC⁻¹k̄ / d_in of the group's first column; 1 is ordinary text's mean
    norm: float  # ‖ΔW of the edit's group‖ / ‖W‖, Frobenius
    steps: int
    trained: bool  # every row that was trained on reached its margin
    trained_margin: float  # alone, when training stopped, the least over the rows that were trained on
    served_margin: float  # with the whole patch's delta
    rows: int  # contexts and forms under which it was checked
    passed: int  # of them, those with the target in the lead

    def problems(self, limits: RomeSettings) -> list[str]:
        """One line for each limit that the edit breaks: what came, the limit, what to do."""
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
        """The JSON-able line of a report."""
        return asdict(self) | {"problems": self.problems(limits)}


def refuse_unsafe(measured: Sequence[EditHealth], limits: RomeSettings) -> None:
    """Raise `UnsafeEdit` that names every edit beyond a limit, unless `on_missed` is "report"."""
    if limits.on_missed == "report":
        return
    lines = [
        f"edit {one.edit} ({change(one.prompt, one.target)}): {problem}"
        for one in measured
        for problem in one.problems(limits)
    ]
    if lines:
        raise UnsafeEdit("\n".join(lines))
