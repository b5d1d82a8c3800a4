"""Serving compiled patches from stock vLLM. Importing this imports neither vLLM nor torch nor the editing package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_edit.serving.offline import PatchedLLM

__all__ = ["PatchedLLM"]


def __getattr__(name: str) -> Any:
    if name == "PatchedLLM":
        from vllm_edit.serving.offline import PatchedLLM

        return PatchedLLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
