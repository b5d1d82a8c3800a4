"""Finds the local folder of the model that vLLM serves."""

from __future__ import annotations

from pathlib import Path


def model_folder(model: str, revision: str | None = None) -> Path:
    """The local folder of a served model: `model` itself, or its folder in the hub's cache, where vLLM downloads it."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))
