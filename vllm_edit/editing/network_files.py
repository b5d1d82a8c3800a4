"""A trained network on disk.

network.safetensors   the tensors, which identify the network
network.json          base, matrices, training settings and training result
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError

from vllm_edit.artefacts.site import Site, check_rank
from vllm_edit.digest import digest_tensors
from vllm_edit.editing.hypernetworks.hypernetwork import Hypernetwork
from vllm_edit.editing.network_methods import OLDEST, network_method
from vllm_edit.errors import Corrupt, Incompatible, NotFound
from vllm_edit.frozen import Frozen
from vllm_edit.invalid import problems_of
from vllm_edit.json_value import JSONObject
from vllm_edit.models.base import Base
from vllm_edit.text.thinking import thinking_of
from vllm_edit.text.utf8 import read_text

TENSORS_FILE = "network.safetensors"
CARD_FILE = "network.json"
MAX_RANK = 16
"""Default maximum rank. An edit's delta has one rank per token; most of its energy is in the first few."""


class Card(Frozen):
    """The metadata of a trained network (`network.json`). Cards from before KnowledgeEditor name no method: MEND."""

    digest: str
    base: str
    model: str
    modules: tuple[str, ...]
    settings: JSONObject
    edits: int
    subjects: int
    step: int
    validation: dict[str, float]
    method: str = OLDEST


def save(folder: Path, network: Hypernetwork[Any], card: Card) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content: bytes = safetensors.torch.save(network.tensors())
    (folder / TENSORS_FILE).write_bytes(content)
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Hypernetwork[Any], Card]:
    """Load the network of a folder that `save` wrote.

    Raises:
        NotFound: the folder contains no network.
        Corrupt: a file is damaged, or the files do not belong together.
        EditError: the network is of a method that this version does not have.
    """
    try:
        card = Card.model_validate_json(read_text(folder / CARD_FILE))
        tensors = safetensors.torch.load((folder / TENSORS_FILE).read_bytes())
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no network in {folder} ({error.filename} is missing): train one with `vllm-edit hypernet train`"
        ) from None
    except ValidationError as error:
        raise Corrupt(f"{folder / CARD_FILE} is not a network's card: {'; '.join(problems_of(error))}") from error
    except SafetensorError as error:
        raise Corrupt(f"the network in {folder} cannot be read: {error}") from error
    if (digest := digest_tensors(tensors)) != card.digest:
        raise Corrupt(f"{folder / TENSORS_FILE} has digest {digest}, its card says {card.digest}")
    network: Hypernetwork[Any] = network_method(card.method).network.from_tensors(card.modules, tensors)
    return network, card


def network_site(
    base: Base, network: Hypernetwork[Any], card: Card, *, max_rank: int | None = None, slots: int = 16
) -> Site:
    """The site of a network: the matrices that it edits.

    Raises:
        Incompatible: the network was trained for another base.
        EditError: vLLM does not support `max_rank`.
    """
    if not base.fingerprint.is_named(card.base):
        raise Incompatible(
            f"the network was trained for base {card.base[:12]} ({card.model}), the model {base.name} is "
            f"{base.fingerprint.digest[:12]}: train one for this model (vllm-edit hypernet train)"
        )
    rank = MAX_RANK if max_rank is None else max_rank
    check_rank(rank)
    first = next(
        number
        for number, layer in enumerate(base.layout.layers)
        if any(name.startswith(f"{layer}.") for name in network.modules_edited)
    )
    return Site(
        base=base.fingerprint,
        model=base.name,
        modules=network.modules_edited,
        layer=first,
        network=network.digest,
        network_method=None if card.method == OLDEST else card.method,
        thinking=thinking_of(base.tokenizer),
        max_rank=rank,
        slots=slots,
    )
