"""The edits that atlas's hypernetwork is trained on: of subjects that no evaluation ever edits.

A fifth of all subjects is set aside for choosing things (`edits.py`); evaluations draw from the others. Training takes
that fifth, and its probes too ask about nobody else, so nothing of an evaluated fact is seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vllm_edit.atlas import facts_folder
from vllm_edit.atlas.documents import included
from vllm_edit.atlas.edits import counterfactual
from vllm_edit.atlas.facts import Facts
from vllm_edit.patch import Edit


def training_edits(
    count: int = 4000, *, seed: int = 0, exclude: Iterable[str] = (), folder: str | Path | None = None
) -> list[Edit]:
    """`count` counterfactual edits of the subjects set aside, drawn over and over: other targets, forms and probes.

    exclude: names of subjects that must not be trained on for another reason.
    """
    facts = set_aside(Facts.load(folder or facts_folder()), exclude)
    rng = random.Random(f"mend:{seed}")
    usable = [fact for fact in facts if len({peer.object for peer in facts.by_relation[fact.relation.id]}) > 1]
    return [counterfactual(facts, rng.choice(usable), rng) for _ in range(count)]


def network_folder() -> Path:
    """The hypernetwork shipped for atlas's weights."""
    return Path(__file__).parent / "hypernet"


def set_aside(facts: Facts, exclude: Iterable[str] = ()) -> Facts:
    """The tables with only those subjects that no evaluation edits."""
    names = set(exclude)
    subjects = tuple(
        subject
        for subject in facts.subjects
        if included("sweep", subject.name, share=0.2) and not names & {subject.name, *subject.aliases}
    )
    return replace(facts, subjects=subjects)
