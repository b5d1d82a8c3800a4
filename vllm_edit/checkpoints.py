"""Checkpoints, from which an interrupted training resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vllm_edit.errors import EditError
from vllm_edit.files import replacing


def write_checkpoint(path: Path, identity: str, state: Mapping[str, Any]) -> None:
    """Write or replace a checkpoint; an interruption leaves the one before.

    Args:
        path: the checkpoint's file.
        identity: what `read_checkpoint` compares: a digest of data and settings.
        state: tensors and plain values.
    """
    with replacing(path, only_writer=True) as new:
        torch.save({"identity": identity, **state}, new)


def read_checkpoint(path: Path, identity: str, otherwise: str) -> dict[str, Any] | None:
    """Read a checkpoint; None if there is no file.

    Args:
        path: the checkpoint's file.
        identity: the identity that the checkpoint must have.
        otherwise: the message's predicate if it has another identity.

    Raises:
        EditError: the file cannot be read, or belongs to another training.
    """
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        found = saved["identity"]
    except Exception as error:  # unpickling arbitrary bytes can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EditError(f"{path} cannot be read as a checkpoint ({reason[:200]}); remove it to start again") from error
    if found != identity:
        raise EditError(f"{path} {otherwise}; remove it or choose another --out")
    return saved
