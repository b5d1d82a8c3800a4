"""The protocols with the sites and settings that they share, and where each keeps its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.variants import LAYERS
from benchmarks.lifelong.protocols import Composed, Publisher, Sequential
from vllm_edit.artefacts.site import Site, least_rank
from vllm_edit.digest import digest_json
from vllm_edit.editing.closed_form_settings import ClosedFormSettings
from vllm_edit.editing.memit.layers import layers_of
from vllm_edit.editing.memit.memit_settings import AlphaEditSettings, MemitSettings
from vllm_edit.editing.memit.null_space import NullSpace
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.second_moment import SecondMoment
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.editing.site.sites import MadeSite, over_depth
from vllm_edit.editing.site_tensors import SiteTensors
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.store.store import Store

TITLES: Mapping[str, str] = {
    "rome": "r-ROME, composed",
    "memit": "MEMIT, composed",
    "alphaedit": "AlphaEdit, composed",
    "sequential": "AlphaEdit, sequential",
}
"""Protocol → its name in tables."""
PREFIXED = 2
"""Contexts with a prefix, besides the bare prompt: each edit has three rows to train on."""
_SHARED: Mapping[str, Any] = {"forms": ("plain",), "same_ending": 2, "on_missed": "report"}
SETTINGS: Mapping[str, ClosedFormSettings] = {
    "rome": RomeSettings(**_SHARED),
    "memit": MemitSettings(**_SHARED),
    "alphaedit": AlphaEditSettings(**_SHARED),
    "sequential": AlphaEditSettings(**_SHARED),
}
"""Protocol → the settings of its method: the defaults, but only the prompt as text is trained, not the chat turn, and
few other names are read for each ending of a subject."""


@dataclass(frozen=True)
class Place:
    """Where a protocol edits."""

    site: Site
    site_tensors: SecondMoment | SecondMoments


def places_of(store: Store, base: Base, size: int, cache: Path, depth: int = LAYERS) -> Callable[[str], Place]:
    """From a protocol to its place, at the store's site. Second moments are measured once, into `cache`.

    size: edits of a batch, the rank that it needs.

    Raises:
        EditError: the store has no text of its own, on which the second moments of more layers are measured.
    """
    given = store.site()
    bare = [context for context in given.contexts or () if not context.prefix]
    prefixed = [context for context in given.contexts or () if context.prefix and not context.chat]
    rank = least_rank(max(size, given.max_rank))
    site = given.model_copy(update={"contexts": (*bare, *prefixed[:PREFIXED]), "max_rank": rank})
    moment = SecondMoment.from_tensors(store.moment())

    def place(protocol: str) -> Place:
        if protocol == "rome" or depth == 1:
            return Place(site, moment)
        texts = store.document("texts")
        if not isinstance(texts, list):
            raise EditError(
                f"{store.url} has no text for the second moments of more layers: make it with vllm-edit store init"
            )
        made = over_depth(base, MadeSite(site, moment), depth, list(map(str, texts)), cache=cache)
        return Place(made.site, made.moments)

    return place


def publisher_of(
    protocol: str,
    base: Base,
    place: Place,
    folder: Path,
    identity: Mapping[str, Any],
    settings: ClosedFormSettings | None = None,
) -> Publisher:
    """The protocol's publisher, with what an earlier run in `folder` published. identity: what decides its updates."""
    chosen = settings or SETTINGS[protocol]
    if isinstance(chosen, AlphaEditSettings) and protocol == "sequential":
        metric = partial(NullSpace.of, threshold=chosen.null_space)
        layers = layers_of(base, place.site, place.site_tensors, metric)
        return Sequential(base, layers, chosen, folder / "state.pt", digest_json(identity))
    tensors: SiteTensors = place.site_tensors
    store = Store.create(folder / "patches", place.site, tensors.tensors())
    return Composed(base, protocol, store, tensors, chosen)
