"""Declare a fact, compile it into a low-rank delta, serve it per request from stock vLLM.

The names below are the public Python interface. They are imported on first use, so that `import vllm_edit` loads
neither torch nor vllm: a server imports no editing code, and compiling a patch imports no vllm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_edit.composition.compose import compose
    from vllm_edit.deltas.delta import Delta
    from vllm_edit.editing.compile import compile_patch
    from vllm_edit.evaluation.evaluate import evaluate
    from vllm_edit.patch import Patch
    from vllm_edit.serving.offline import PatchedLLM
    from vllm_edit.store.store import Store

__all__ = ["Delta", "Patch", "PatchedLLM", "Store", "compile_patch", "compose", "evaluate"]

_HOME = {
    "Delta": "vllm_edit.deltas.delta",
    "Patch": "vllm_edit.patch",
    "PatchedLLM": "vllm_edit.serving.offline",
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
