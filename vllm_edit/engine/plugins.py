"""The plugins that vLLM loads: the value of `VLLM_PLUGINS`, extended by this package's plugin."""

from __future__ import annotations

PLUGIN = "vllm_edit"


def merged_plugins(present: str | None) -> str:
    """`VLLM_PLUGINS` with our plugin added. The variable is one allow-list for all groups, so the user's entries stay.

    Args:
        present: the current value; None if it is not set.
    """
    named = [name for name in (present or "").split(",") if name]
    return ",".join(named if PLUGIN in named else [*named, PLUGIN])


def load() -> None:
    """Load the allowed general plugins into this process, as vLLM's workers do."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
