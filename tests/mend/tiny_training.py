"""A tiny base with edits to train a network on: a random model, so shares mean nothing here, only losses do."""

from __future__ import annotations

from tests.tiny import SENTENCES, tiny_model, tiny_tokenizer
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.mend.mend_settings import MendTrainingSettings
from vllm_edit.models.base import Base

TEXTS = list(SENTENCES)
QUICK = MendTrainingSettings(
    steps=6, edits=3, taught=2, kept=2, texts=1, rank=8, warm=4, validation=0.3, validated=2, validate_every=2
)
_PLACES = ("France", "Japan", "Germany", "Italy", "Spain", "Brazil", "Finland")
_ANSWERS = ("Paris", "people", "French")


def tiny_base(family: str = "llama") -> Base:
    tokenizer = tiny_tokenizer()
    return Base.of(tiny_model(family, tokenizer), tokenizer)


def tiny_edits() -> list[Edit]:
    """Two edits of each of seven places, with a paraphrase, a neighbour and something unrelated."""
    edits = []
    for number, place in enumerate(_PLACES):
        other = _PLACES[(number + 1) % len(_PLACES)]
        for answer in (_ANSWERS[number % 3], _ANSWERS[(number + 1) % 3]):
            probes = (
                Probe(kind="paraphrase", prompt=f"What is the capital of {place}?"),
                Probe(kind="locality", prompt=f"The capital of {other} is", target="Rome"),
                Probe(kind="unrelated", prompt="Who wrote Hamlet?"),
            )
            edit = Edit(prompt=f"The capital of {place} is", subject=place, target_new=answer, probes=probes)
            edits.append(edit)
    return edits
