"""Reports: measurements of a compiled patch and the verdict of its gate, recorded outside the patch's digest."""

from __future__ import annotations

from typing import Literal

from pydantic import SerializeAsAny

from vllm_edit.artefacts.recorded import Recorded
from vllm_edit.json_value import JSONObject
from vllm_edit.text.quoting import change


class EditReport(Recorded):
    """An edit as compiled.

    Attributes:
        edit: index of the edit in its patch.
        subject: the edit's subject.
        prompt: the edit's prompt.
        target: the edit's new target.
        trained_margin: lead of the target over its best rival at the end of training, in nats; the minimum over all
            trained rows.
        served_margin: the same lead under the delta as saved; the minimum over all checked rows.
        problems: one line for each limit that the edit exceeds.
    """

    edit: int
    subject: str
    prompt: str
    target: str
    trained_margin: float
    served_margin: float
    problems: tuple[str, ...]


class CompileReport(Recorded):
    """A patch as compiled. A value is None if the method does not measure it.

    Attributes:
        edits: one report for each edit; empty if nothing was measured.
        norm: ‖ΔW‖ / ‖W‖, Frobenius. With scope subject the maximum over the units.
        interference: highest whitened cosine (absolute) between keys of different groups, in [0, 1].
        steps: training steps of a baseline.
        loss: loss of a baseline after its last step, in nats per token; None if it made no step.
        energy_kept: share of ‖ΔW‖² that remains after truncation to the site's rank, in [0, 1].
        scales: for each edit, the factor of its update by the line search (MEND, KnowledgeEditor, UltraEdit).
        rank: rank before truncation (MEND, KnowledgeEditor, UltraEdit).
        seconds: duration of compiling.
    """

    edits: tuple[SerializeAsAny[EditReport], ...] = ()
    norm: float | None = None
    interference: float | None = None
    steps: int | None = None
    loss: float | None = None
    energy_kept: float | None = None
    scales: tuple[float, ...] | None = None
    rank: int | None = None
    seconds: float | None = None

    @property
    def missed(self) -> tuple[int, ...]:
        """Indices of the edits that exceed a limit."""
        return tuple(report.edit for report in self.edits if report.problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each limit that an edit exceeds; the line names the edit."""
        return tuple(
            f"edit {report.edit} ({change(report.prompt, report.target)}): {problem}"
            for report in self.edits
            for problem in report.problems
        )

    def as_record(self) -> JSONObject:
        """The report as JSON values, with `missed`; empty if nothing was measured."""
        record = super().as_record()
        if self.edits:
            return record | {"missed": list(self.missed)}
        del record["edits"]
        return record


class Interference(Recorded):
    """Two key groups of a composition whose keys interfere.

    Attributes:
        subjects: the subjects of both groups.
        prompts: the first prompt of each group.
        cosine: highest whitened cosine (absolute) between their edited columns, in [0, 1].
    """

    subjects: tuple[str, str]
    prompts: tuple[str, str]
    cosine: float


class CompositionReport(Recorded):
    """What algebra says about a composition, without the model.

    Attributes:
        judged_by: who judged: algebra.
        norm_growth: ‖Δ‖ / √(Σ ‖Δ_m‖²) over the members that take part, without edits that were left out; 1 for
            unrelated keys.
        constraint_error: the largest difference between an edit's shift at its own key and the shift by its own
            member, ‖Δ k − Δ_m k‖ / ‖Δ_m k‖; None if a member has no factors.
        highest_cosine: the highest cosine of all pairs of key groups; None if no member has factors.
        pairs: number of pairs of key groups; None if no member has factors.
        interference: the pairs with the highest cosines, the highest first.
        kept_energy: share of ‖Δ‖² that remains after truncation to the site's rank, in [0, 1].
        seconds: duration of composing.
    """

    judged_by: Literal["algebra"] = "algebra"
    norm_growth: float
    constraint_error: float | None = None
    highest_cosine: float | None = None
    pairs: int | None = None
    interference: tuple[Interference, ...] = ()
    kept_energy: float = 1.0
    seconds: float | None = None


class GateReport(Recorded):
    """The verdict of a patch's gate, measured with the model.

    Attributes:
        judged_by: who judged: the model.
        failures: one line for each metric that misses the gate; empty if the gate accepts the patch.
        not_judged: metrics of the gate for which some edits have no probe, as one line.
        default_probes: number of probes about known facts that were asked besides the patch's own.
    """

    judged_by: Literal["model"] = "model"
    failures: tuple[str, ...] = ()
    not_judged: str = ""
    default_probes: int = 0

    @property
    def accepted(self) -> bool:
        """True if no metric misses the gate."""
        return not self.failures

    @property
    def status(self) -> Literal["accepted", "rejected"]:
        """The patch's status in the registry."""
        return "accepted" if self.accepted else "rejected"
