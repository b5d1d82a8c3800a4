"""Health: measurements of every compiled edit, and the limits that an edit must meet.

An edit is refused if its key's leverage k̄ᵀC⁻¹k̄ is too small (the update would act on all text: the "disabling edits"
of arXiv 2403.07175), if its part of ΔW is too large relative to W, or if its target does not lead in every context and
form under the final delta as served.
"""

from __future__ import annotations

from vllm_edit.artefacts.reports import EditReport
from vllm_edit.editing.closed_form_settings import ClosedFormSettings


class EditHealth(EditReport):
    """An edit as compiled by r-ROME. `trained_margin` is measured under the update of the edit's own key group.

    Attributes:
        group: index of the edit's key group.
        denominator: k̄ᵀC⁻¹k̄ / d_in of the group's first column; the mean over ordinary text is 1.
        norm: ‖ΔW of the edit's group‖ / ‖W‖, Frobenius; with several modules, of the one where it is greatest.
        steps: training steps of the group.
        trained: True if every trained row reached its margin.
        rows: number of checked contexts and forms.
        passed: number of rows in which the target leads.
    """

    problems: tuple[str, ...] = ()
    group: int
    denominator: float
    norm: float
    steps: int
    trained: bool
    rows: int
    passed: int

    def judged(self, limits: ClosedFormSettings) -> EditHealth:
        """A copy with its problems: for each limit that the edit exceeds the value, the limit, and advice."""
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
        return self.model_copy(update={"problems": tuple(found)})
