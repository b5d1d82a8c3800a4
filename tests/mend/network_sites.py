"""The card and the site of an untrained network."""

from __future__ import annotations

from typing import Any

from vllm_edit.artefacts.site import Site
from vllm_edit.editing.hypernetworks.hypernetwork import Hypernetwork
from vllm_edit.editing.network_files import Card, network_site
from vllm_edit.editing.network_methods import NETWORK_METHODS
from vllm_edit.models.base import Base


def card_for(base: Base, network: Hypernetwork[Any]) -> Card:
    (method,) = (name for name, made in NETWORK_METHODS.items() if isinstance(network, made.network))
    return Card(
        digest=network.digest,
        base=base.fingerprint.digest,
        model=base.name,
        modules=network.modules_edited,
        settings={},
        edits=0,
        subjects=0,
        step=0,
        validation={},
        method=method,
    )


def site_for(base: Base, network: Hypernetwork[Any], rank: int = 64) -> Site:
    return network_site(base, network, card_for(base, network), max_rank=rank)
