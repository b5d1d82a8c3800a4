"""`vllm-edit demo`: the whole product once through, with the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its store and the server's log.")] = Path(
        "runs/demo"
    ),
    patches: Annotated[Path, typer.Option(help="Folder of patches to compile.")] = Path("patches"),
) -> None:
    """Choose a site, compile patches/, serve two tenants, base and IKE side by side, publish and roll back."""
    from vllm_edit.cli.output import wide_console
    from vllm_edit.demo.story import Demo

    Demo(folder, patches, wide_console()).run()
