"""Copies of adapters on this node, in memory where the node has /dev/shm: vLLM reads them again after evicting one.

A copy's path is part of vLLM's prefix-cache key, so it depends on nothing but the cache folder and the artefact's name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from vllm_edit.errors import EditError
from vllm_edit.files import becoming, move_into_place, write_tree

_MEMORY = Path("/dev/shm")


def local_copy(name: str, files: Mapping[str, bytes], cache: str | Path | None = None) -> Path:
    """The folder `<cache>/<name>` with exactly these files' bytes; it appears whole, a damaged one is replaced.

    Raises:
        Unavailable: there is no room for it.
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
    """This user's own folder in memory, or among the temporary files.

    Raises:
        EditError: somebody else made a folder of that name; adapters in it could be anyone's.
    """
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    root = parent / f"vllm-edit-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise EditError(f"{root} belongs to someone else; remove it, or name a cache folder of your own")
    return root


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    try:
        return all((folder / name).read_bytes() == data for name, data in files.items())
    except OSError:  # none, or one that cannot be read: it is replaced
        return False
