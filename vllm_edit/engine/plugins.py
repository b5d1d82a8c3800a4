"""The plugins that vLLM loads: `VLLM_PLUGINS` with this package's own."""

from __future__ import annotations

PLUGIN = "vllm_edit"


def merged_plugins(present: str | None) -> str:
    """`VLLM_PLUGINS` with ours: it is one allow-list for all groups, so what the user allowed stays."""
    named = [name for name in (present or "").split(",") if name]
    return ",".join(named if PLUGIN in named else [*named, PLUGIN])


def load() -> None:
    """Load the general plugins that are allowed into this process, as vLLM's workers do."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
