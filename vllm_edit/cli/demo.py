"""`vllm-edit demo`: a tour of all features, with the embedded model or a pretrained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer


def demo(
    plan: Annotated[
        Literal["atlas", "real"], typer.Argument(help="atlas: the embedded model. real: SmolLM2, pretrained.")
    ] = "atlas",
    folder: Annotated[
        Path | None, typer.Option(help="Folder for the demo's store and the server's log; default runs/demo….")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model folder or hub id for the same patches.")] = None,
    patches: Annotated[Path | None, typer.Option(help="Folder of patches to compile; default the plan's.")] = None,
) -> None:
    """Choose a site, compile patches, serve tenants, base and IKE side by side, publish, roll out and roll back."""
    from vllm_edit.cli.model_inputs import bank_of
    from vllm_edit.cli.output import wide_console
    from vllm_edit.demo.plan import ATLAS, REAL
    from vllm_edit.demo.story import Demo

    chosen = {"atlas": ATLAS, "real": REAL}[plan]
    if model is not None:
        chosen = replace(chosen, model=model, missing="")
    if patches is not None:
        chosen = replace(chosen, patches=patches)
    place = folder or Path("runs/demo" if plan == "atlas" else f"runs/demo-{plan}")
    Demo(chosen, place, wide_console(), lambda store: bank_of(store, None)).run()
