"""Checkpoints of a training: what an interrupted one goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vllm_edit.errors import EditError


def read_checkpoint(path: Path, identity: str, otherwise: str) -> dict[str, Any] | None:
    """What was saved under `identity`; None where there is no file. otherwise: what is said of one of another identity.

    Raises:
        EditError: the file cannot be read, or is of another training.
    """
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        found = saved["identity"]
    except Exception as error:  # unpickling other bytes raises whatever they lead to
        told = " ".join(str(error).split()) or type(error).__name__
        raise EditError(f"{path} cannot be read as a checkpoint ({told[:200]}); remove it to begin anew") from error
    if found != identity:
        raise EditError(f"{path} {otherwise}; remove it or choose another --out")
    return saved
