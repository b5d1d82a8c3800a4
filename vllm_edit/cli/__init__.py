"""The command line: one file per noun. Importing this package or asking for help imports neither torch nor vLLM."""

from __future__ import annotations

from typing import Any


def main() -> None:
    """The `vllm-edit` program. How it ends is in `ending`."""
    try:
        from vllm_edit.cli.program import run  # only here: Ctrl-C may come while it is imported
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'vllm_edit.cli' has no attribute {name!r}; it offers app and main")
    from vllm_edit.cli.program import app

    return app
