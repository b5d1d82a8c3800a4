"""Where edits are compiled: the site of a store that `vllm-edit store init` made, in a store of the benchmark's own."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_edit.artefacts.site import LEGAL_RANKS, Site
from vllm_edit.editing.site_tensors import SiteTensors, site_tensors_of
from vllm_edit.errors import EditError, NotFound
from vllm_edit.models.base import Base
from vllm_edit.store.store import Store

TEXT = "wikitext2/test.txt"
_PASSAGES, _LONGEST, _SHORTEST = 64, 400, 200


@dataclass(frozen=True)
class Place:
    """given: the store whose site is used. kept: the benchmark's own, whose site allows the rank of many edits."""

    given: Store
    kept: Store
    site_tensors: SiteTensors

    @property
    def site(self) -> Site:
        return self.kept.site()


def open_place(url: str, folder: Path, base: Base, largest: int) -> Place:
    """The store at `url`, made with nothing but the model where there is none, and the benchmark's own under `folder`.

    Raises:
        EditError: the store is another model's, or could not be made.
    """
    given = opened(url, base)
    site = given.site()
    site_tensors = site_tensors_of(site, given.site_tensors())
    rank = next((legal for legal in LEGAL_RANKS if legal >= max(largest, site.max_rank)), LEGAL_RANKS[-1])
    wide = site.model_copy(update={"max_rank": rank})
    kept = Store.create(folder / wide.digest[:12] / "patches", wide, site_tensors.tensors())
    return Place(given, kept, site_tensors)


def opened(url: str, base: Base) -> Store:
    """The store at `url`, made with nothing but the model where there is none.

    Raises:
        EditError: the store is another model's, or could not be made.
    """
    store = _opened_or_made(url, base)
    if store.site().base.departures(base.fingerprint):
        raise EditError(f"{url} is a store for another base than {base.name}; name another one with --store")
    return store


def _opened_or_made(url: str, base: Base) -> Store:
    try:
        return Store.open(url)
    except NotFound:
        command = [sys.executable, "-m", "vllm_edit.cli", "store", "init", "--model", str(base.folder), "--store", url]
        if subprocess.run(command, check=False).returncode:
            raise EditError(f"no store could be made in {url}: `{' '.join(command[2:])}` says why") from None
        return Store.open(url)


def passages(data: Path, store: Store, seed: int) -> list[str]:
    """Ordinary text to read: pieces of WikiText-2, else what the store keeps for its gates."""
    path = data / TEXT
    if not path.is_file():
        return list(store.passages())
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    long = [line[:_LONGEST] for line in lines if len(line) >= _SHORTEST]
    return random.Random(seed).sample(long, k=min(_PASSAGES, len(long)))
