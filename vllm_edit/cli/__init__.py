"""The command line: one file per noun. Importing this package or asking for help imports neither torch nor vLLM."""

from __future__ import annotations

from typing import Any


def main() -> None:
    """Run the `vllm-edit` program. `ending` defines its exit codes."""
    try:
        from vllm_edit.cli.program import run  # imported here, so that Ctrl-C during the import is handled
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'vllm_edit.cli' has no attribute {name!r}; it offers app and main")
    from vllm_edit.cli.program import app

    return app
