"""Declare a fact, compile it into a low-rank delta, serve it per request from stock vLLM.

The names below are the public Python interface. They are imported on first use, so that `import vllm_edit` loads
neither torch nor vllm: a server imports no editing code, and compiling a patch imports no vllm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_edit.artefacts.compiled import CompiledPatch
    from vllm_edit.artefacts.reports import CompileReport, CompositionReport, GateReport
    from vllm_edit.composition.compose import compose
    from vllm_edit.deltas.delta import Delta
    from vllm_edit.edit import Edit, Probe
    from vllm_edit.editing.compile import compile_patch
    from vllm_edit.errors import EditError
    from vllm_edit.evaluation.evaluate import evaluate
    from vllm_edit.evaluation.evaluation_settings import EvaluationSettings
    from vllm_edit.evaluation.report import Report
    from vllm_edit.evaluation.runners.hf import HFRunner
    from vllm_edit.ike.bank import Bank
    from vllm_edit.models.base import Base
    from vllm_edit.patch import Gate, Patch
    from vllm_edit.release.pipeline import Outcome, Pipeline
    from vllm_edit.serving.offline import PatchedLLM
    from vllm_edit.store.store import Store

__all__ = [
    "Bank",
    "Base",
    "CompileReport",
    "CompiledPatch",
    "CompositionReport",
    "Delta",
    "Edit",
    "EditError",
    "EvaluationSettings",
    "Gate",
    "GateReport",
    "HFRunner",
    "Outcome",
    "Patch",
    "PatchedLLM",
    "Pipeline",
    "Probe",
    "Report",
    "Store",
    "compile_patch",
    "compose",
    "evaluate",
]

_HOME = {
    "Bank": "vllm_edit.ike.bank",
    "Base": "vllm_edit.models.base",
    "CompileReport": "vllm_edit.artefacts.reports",
    "CompiledPatch": "vllm_edit.artefacts.compiled",
    "CompositionReport": "vllm_edit.artefacts.reports",
    "Delta": "vllm_edit.deltas.delta",
    "Edit": "vllm_edit.edit",
    "EditError": "vllm_edit.errors",
    "EvaluationSettings": "vllm_edit.evaluation.evaluation_settings",
    "Gate": "vllm_edit.patch",
    "GateReport": "vllm_edit.artefacts.reports",
    "HFRunner": "vllm_edit.evaluation.runners.hf",
    "Outcome": "vllm_edit.release.pipeline",
    "Patch": "vllm_edit.patch",
    "PatchedLLM": "vllm_edit.serving.offline",
    "Pipeline": "vllm_edit.release.pipeline",
    "Probe": "vllm_edit.edit",
    "Report": "vllm_edit.evaluation.report",
    "Store": "vllm_edit.store.store",
    "compile_patch": "vllm_edit.editing.compile",
    "compose": "vllm_edit.composition.compose",
    "evaluate": "vllm_edit.evaluation.evaluate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vllm_edit' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
