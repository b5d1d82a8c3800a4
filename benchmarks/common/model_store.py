"""A pretrained model's store: opened, or made with nothing but the model."""

from __future__ import annotations

import subprocess
import sys

from vllm_edit.errors import EditError, NotFound
from vllm_edit.models.base import Base
from vllm_edit.store.store import Store


def model_store(url: str, base: Base) -> Store:
    """The store at `url`, made with nothing but the model where there is none.

    Raises:
        EditError: the store is another model's, or could not be made.
    """
    given = _opened(url, base)
    if given.site().base.departures(base.fingerprint):
        raise EditError(f"{url} is a store for another base than {base.name}; name another one with --store")
    return given


def _opened(url: str, base: Base) -> Store:
    try:
        return Store.open(url)
    except NotFound:
        command = [sys.executable, "-m", "vllm_edit.cli", "store", "init", "--model", str(base.folder), "--store", url]
        if subprocess.run(command, check=False).returncode:
            raise EditError(f"no store could be made in {url}: `{' '.join(command[2:])}` says why") from None
        return Store.open(url)
