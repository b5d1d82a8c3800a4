"""The gate of a composition made on demand: algebra only. The model gates a composition that a person publishes."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_edit.artefacts.compiled import CompiledPatch


@dataclass(frozen=True)
class Limits:
    """Limits on how far a composition may differ from its members, each of which was gated alone."""

    constraint_error: float = 0.2
    """Maximum relative difference between an edit's shift at its own key and its member's shift there: residuals
    are trained to a margin, and most of it remains after a change of a fifth."""
    norm_growth: float = 2.0
    """Maximum growth of ‖Δ‖. Two keys of cosine c with unrelated residuals grow it by 1/√(1 − c²): 2 means c = 0.87,
    near the cosine from which keys count as equal (`KEPT_COSINE`)."""


DEFAULT_LIMITS = Limits()


def vouch(composition: CompiledPatch, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Reasons why a composition may not be served without a gate by the model; empty if it may."""
    report = composition.report
    if "constraint_error" not in report:
        return ["it has members without factors, so only a gate with the model can check their combination"]
    problems = []
    if not report["constraint_error"] <= limits.constraint_error:  # also for NaN
        problems.append(
            f"an edit's shift at its own key differs by {report['constraint_error']:.3f} from its member's, at most "
            f"{limits.constraint_error:g} is allowed"
        )
    if not report["norm_growth"] <= limits.norm_growth:
        problems.append(f"‖Δ‖ grows {report['norm_growth']:.2f}-fold, at most {limits.norm_growth:g}-fold is allowed")
    return problems
