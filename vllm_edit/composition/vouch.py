"""vouch: the gate of a composition made on demand. Algebra only; a composition made by a person is gated by a model."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_edit.artefacts.compiled import CompiledPatch


@dataclass(frozen=True)
class Limits:
    """How far a composition may be from its members, each of which was judged alone, before algebra stops vouching."""

    constraint_error: float = 0.2
    """Most that an edit's shift at its own key may differ from the one it was judged with: residuals are trained to a
    margin, of which a change of a fifth leaves most."""
    norm_growth: float = 2.0
    """Most growth of ‖Δ‖. Two keys of cosine c with unrelated residuals grow it by 1/√(1 − c²): 2 means c = 0.87, where
    keys begin to count as one (`KEPT_COSINE`)."""


DEFAULT_LIMITS = Limits()


def vouch(composition: CompiledPatch, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Every reason why algebra does not vouch for a composition; none means it may be served without a gate."""
    report = composition.report
    if "constraint_error" not in report:
        return ["it has members without factors, of which only a gate with the model can tell what they do together"]
    problems = []
    if not report["constraint_error"] <= limits.constraint_error:  # also for NaN
        problems.append(
            f"an edit's shift at its own key differs by {report['constraint_error']:.3f} from its member's, at most "
            f"{limits.constraint_error:g} is vouched for"
        )
    if not report["norm_growth"] <= limits.norm_growth:
        problems.append(
            f"‖Δ‖ grows {report['norm_growth']:.2f}-fold, at most {limits.norm_growth:g}-fold is vouched for"
        )
    return problems
