"""Where edits are compiled: the site of a store that `vllm-edit store init` made, in a store of the benchmark's own."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.variants import Variant
from vllm_edit.artefacts.site import LEGAL_RANKS, Site, least_rank
from vllm_edit.editing.compile import METHODS
from vllm_edit.editing.network_files import load, network_site
from vllm_edit.editing.network_methods import NETWORK_METHODS
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.site.sites import MadeSite, over_depth
from vllm_edit.editing.site_tensors import SiteTensors, site_tensors_of
from vllm_edit.editing.ultraedit.gradient_site import gradient_site
from vllm_edit.editing.ultraedit.gradient_statistics import GradientStatistics
from vllm_edit.errors import EditError
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.known_edits import chosen_edits
from vllm_edit.facts.stored_pool import pool_of
from vllm_edit.models.base import Base
from vllm_edit.progress import Progress, silent
from vllm_edit.store.store import Store

TEXT = "wikitext2/test.txt"
_PASSAGES, _LONGEST, _SHORTEST = 64, 400, 200


@dataclass(frozen=True)
class Place:
    """Where a method edits. kept: the benchmark's own store for that site, which allows the rank of many edits."""

    kept: Store
    site_tensors: SiteTensors

    @property
    def site(self) -> Site:
        return self.kept.site()


@dataclass
class Places:
    """Every method's place, each made when it is first asked for.

    given: the store whose site and pool are used. folder: of the benchmark's own stores. largest: most edits at once.
    networks: folder of the trained network of a method.
    made: the places so far.
    """

    base: Base
    given: Store
    folder: Path
    largest: int
    networks: Mapping[str, Path] = field(default_factory=dict)
    made: dict[tuple[str, int], Place] = field(default_factory=dict)

    def of(self, variant: Variant, progress: Progress = silent) -> Place:
        """The place of a method: the given store's site, also over several layers, statistics' or a network's.

        Raises:
            EditError: the method needs a network that was not given, or a store with its texts.
        """
        key = (variant.method if _own_site(variant.method) else "closed form", variant.layers)
        if key not in self.made:
            site, tensors = self._site(variant, progress)
            rank = max(self.largest, site.max_rank)
            if isinstance(tensors, GradientStatistics):
                rank = LEGAL_RANKS[-1]  # an edit has a rank for each token of its answer
            wide = site.model_copy(update={"max_rank": least_rank(rank)})
            kept = Store.create(self.folder / wide.digest[:12] / "patches", wide, tensors.tensors())
            self.made[key] = Place(kept, tensors)
        return self.made[key]

    def _site(self, variant: Variant, progress: Progress) -> tuple[Site, SiteTensors]:
        site = self.given.site()
        if variant.method in NETWORK_METHODS:
            if variant.method not in self.networks:
                raise EditError(f"a row of {variant.method} needs its network: name its folder with --network")
            network, card = load(self.networks[variant.method])
            return network_site(self.base, network, card), network
        if variant.method == "ultraedit":
            pool = pool_of(self.given, self.base, progress)
            edits = chosen_edits(pool, Facts.load(tables_folder()), self.base, seed=site.seed, progress=progress)
            statistics = gradient_site(self.base, edits)
            return statistics.site, statistics.statistics
        if variant.layers == 1:
            return site, site_tensors_of(site, self.given.site_tensors())
        made = MadeSite(site, SecondMoment.from_tensors(self.given.moment()))
        texts = self.given.document("texts")
        if not isinstance(texts, list):
            raise EditError(f"{self.given.url} stores no text of its own, which a site over layers is measured on")
        layered = over_depth(self.base, made, variant.layers, [str(text) for text in texts], progress=progress)
        return layered.site, layered.moments


def _own_site(method: str) -> bool:
    """True for a method whose edits are elsewhere than r-ROME's."""
    needs = METHODS[method].needs
    return needs is not None and SecondMoment not in needs


def networks_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Method → the folder of its network."""
    return {load(folder)[1].method: folder for folder in folders}


def passages(data: Path, store: Store, seed: int) -> list[str]:
    """Ordinary text to read: pieces of WikiText-2, else what the store keeps for its gates."""
    path = data / TEXT
    if not path.is_file():
        return list(store.passages())
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    long = [line[:_LONGEST] for line in lines if len(line) >= _SHORTEST]
    return random.Random(seed).sample(long, k=min(_PASSAGES, len(long)))
