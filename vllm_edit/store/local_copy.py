"""Copies of adapters on this node, in memory if it has /dev/shm: vLLM rereads an adapter after evicting it.

A copy's path is part of vLLM's prefix-cache key, so it depends only on the cache folder and the artefact's name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from vllm_edit.errors import EditError
from vllm_edit.files import becoming, memory_folder, move_into_place, write_tree


def local_copy(name: str, files: Mapping[str, bytes], cache: str | Path | None = None) -> Path:
    """Create the folder `<cache>/<name>` with these files atomically, or replace a damaged folder; return its path.

    Raises:
        Unavailable: the disk is full.
    """
    root = default_cache() if cache is None else Path(cache)
    target, temporary = root / name, root / f".{uuid.uuid4().hex}"
    if _holds(target, files):
        return target
    with becoming(target, temporary):
        root.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(temporary)
            shutil.rmtree(temporary)
        write_tree(temporary, files)
        move_into_place(temporary, target)
    return target


def default_cache() -> Path:
    """Return this user's own folder in memory, else in the temporary folder.

    Raises:
        EditError: another user owns the folder of that name, so its adapters cannot be trusted.
    """
    parent = memory_folder() or Path(tempfile.gettempdir())
    root = parent / f"vllm-edit-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise EditError(f"{root} belongs to someone else; remove it, or name a cache folder of your own")
    return root


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    try:
        return all((folder / name).read_bytes() == data for name, data in files.items())
    except OSError:  # a missing or unreadable folder is replaced
        return False
