"""Evaluates patches: the same questions in modes base, weights and ike."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.reports import GateReport
from vllm_edit.artefacts.site import Site
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import EditError
from vllm_edit.evaluation.asking import ask
from vllm_edit.evaluation.evaluation_settings import EvaluationSettings
from vllm_edit.evaluation.perplexity import drift_of
from vllm_edit.evaluation.report import MODES, Mode, Report, in_order
from vllm_edit.evaluation.reporting import report_of
from vllm_edit.evaluation.requests import One, edits_of
from vllm_edit.evaluation.runners.runner import Runner
from vllm_edit.ike.demonstrations import check_disjoint
from vllm_edit.patch import Gate, Patch
from vllm_edit.progress import Progress, silent

__all__ = ["EvaluationSettings", "Subject", "check_modes", "evaluate", "run_gate"]

Subject = One | Sequence[One]


def evaluate(
    subject: Subject,
    runner: Runner,
    modes: Sequence[Mode] = MODES,
    settings: EvaluationSettings | None = None,
    progress: Progress = silent,
    site: Site | None = None,
    passages: Sequence[str] = (),
    added: Sequence[Sequence[Probe]] = (),
) -> Report:
    """Measure patches: ask every edit and its probes in each mode, and compare the answers.

    Args:
        subject: one patch, or several that are each measured alone, such as many single edits. Modes other than
            base need compiled patches. Base is always asked, since locality is judged against it. A refused patch is
            not asked in mode weights: every metric that needs the edit fails, and locality is not counted. For a patch
            with scope subject, a prompt that a server would refuse fails in every metric.
        runner: the engine that answers.
        modes: the modes to measure.
        settings: which probes to ask and how; None for the defaults.
        progress: called with (stage, answered, total).
        site: if given, a prompt may need at most its maximum rank, as in serving.
        passages: ordinary text; if given, the report holds the drift of its perplexity in mode weights.
        added: for each edit, probes to ask besides its own. Only for a single patch.

    Returns:
        Shares with 95 % intervals for every metric and mode.

    Raises:
        EditError: no mode, or an unknown one; or a mode cannot be measured (not compiled, no demonstrations, or a
            context too small for the prefix).

    Example:
        >>> report = evaluate(compiled, HFRunner(base.model, base.tokenizer), ["base", "weights"])
        >>> report.find("reliability", "weights").value
        1.0
    """
    settings = settings or EvaluationSettings()
    patches = [subject] if isinstance(subject, One) else list(subject)
    if not patches:
        raise EditError("nothing to evaluate: expected at least one patch")
    asked = check_modes(patches, modes)
    edits = [_with_probes(edits_of(patch), added) for patch in patches] if added else None
    sheets, costs = ask(patches, runner, asked, settings, progress, site, edits)
    compiled = [patch for patch in patches if isinstance(patch, CompiledPatch)]
    drift = None
    if passages and compiled and "weights" in asked:
        progress("perplexity", 0, 1)
        drift = drift_of(passages, compiled, runner, site)
    return report_of(sheets, asked, settings, runner.name, costs, drift)


def check_modes(patches: Sequence[One], modes: Sequence[Mode]) -> list[Mode]:
    """The modes in standard order, if every patch can be measured in them.

    Raises:
        EditError: no mode, or an unknown one; or a patch is not compiled, or its demonstrations overlap with its
            questions.
    """
    asked = in_order(modes)
    uncompiled = [patch.name for patch in patches if isinstance(patch, Patch)]
    if uncompiled and asked != ["base"]:
        raise EditError(f"{uncompiled[0]} is not compiled: only mode base can be measured; compile it first")
    if "ike" in asked:
        for patch in patches:
            check_disjoint(edits_of(patch), () if isinstance(patch, Patch) else patch.demonstrations)
    return asked


def run_gate(
    compiled: CompiledPatch,
    runner: Runner,
    site: Site | None = None,
    passages: Sequence[str] = (),
    added: Sequence[Sequence[Probe]] = (),
    progress: Progress = silent,
) -> tuple[Report, GateReport]:
    """Measure a compiled patch on its gate probes by free generation and compare with its gate.

    Args:
        compiled: the patch to judge.
        runner: the engine that answers.
        site: as in `evaluate`.
        passages: as in `evaluate`; read only if the gate limits the drift.
        added: as in `evaluate`.
        progress: as in `evaluate`.

    Returns:
        The measurements, with answers and the limits that they could not judge (`unjudged`), and the verdict.
    """
    settings = EvaluationSettings(teacher_forced=False, latency=0, answers=True)
    gate = compiled.manifest.gate
    text = () if gate.perplexity_drift is None else passages
    report = evaluate(compiled, runner, ("base", "weights"), settings, progress, site, text, added)
    measured = report.model_copy(update={"unjudged": _unjudged(report, gate)})
    failures = tuple(measured.gate(gate))
    count = sum(map(len, added))
    return measured, GateReport(failures=failures, not_judged=measured.not_judged, default_probes=count)


def _unjudged(report: Report, gate: Gate) -> dict[str, tuple[int, ...]]:
    """The gate's metric → indices of the edits without a probe for it."""
    asked = {(answer.metric, answer.edit) for answer in report.answers or ()}
    lacking = {
        metric: tuple(edit for edit in range(report.edits) if (metric, edit) not in asked)
        for metric, least in gate.shares().items()
        if least > 0
    }
    return {metric: edits for metric, edits in lacking.items() if edits}


def _with_probes(edits: Sequence[Edit], added: Sequence[Sequence[Probe]]) -> list[Edit]:
    return [edit.model_copy(update={"probes": (*edit.probes, *more)}) for edit, more in zip(edits, added, strict=True)]
