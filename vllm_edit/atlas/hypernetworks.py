"""Training edits and texts of atlas's hypernetworks, about subjects that no evaluation edits; the shipped networks.

A fifth of all subjects is reserved for choices (`facts/counterfactual_edits.py`); evaluations draw from the others.
Training uses that fifth, also for probes and texts. Only new answers come from the whole tables: a fifth of a
relation's objects is not enough to learn to write any object.

An evaluation's locality questions are about all subjects. Those that the comparison of methods and the choice of the
margin ask are not preserved in training (`judged`). `benchmarks.many_edits` draws others, and training preserves some.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from vllm_edit.atlas.training_documents import texts_about
from vllm_edit.edit import Edit
from vllm_edit.editing.hypernetworks.judged import Judged
from vllm_edit.facts import tables_folder
from vllm_edit.facts.counterfactual_edits import draw_edits
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.split import included
from vllm_edit.facts.training_edits import repeated_edits

NETWORK_FOLDERS: Mapping[str, Path] = MappingProxyType(
    {"mend": Path(__file__).parent / "hypernet", "ke": Path(__file__).parent / "knowledge_editor"}
)
"""Method → the folder of the network that is shipped for atlas's weights."""
JUDGED_SEEDS, JUDGED_COUNT = (1, 5), 250
"""The draws of edits that judge atlas's networks: seed 1 for the comparison of methods, seed 5 for the margin. Each
takes the first 200 that atlas knows of 250."""


def training_edits(count: int = 4000, *, seed: int = 0, exclude: Iterable[str] = ()) -> list[Edit]:
    """`count` counterfactual edits of the reserved subjects, drawn repeatedly with other targets, forms and probes.

    Every relation has the same probability. `exclude` names subjects that must not be trained on for other reasons. No
    probe asks what `judged` asks.
    """
    facts = Facts.load(tables_folder())
    edits = repeated_edits(set_aside(facts, exclude), facts, count, random.Random(f"mend:{seed}"))
    return judged().apart(edits)


def judged() -> Judged:
    """What the benchmarks judge."""
    facts = Facts.load(tables_folder())
    return Judged([edit for seed in JUDGED_SEEDS for edit in draw_edits(facts, JUDGED_COUNT, seed=seed)])


def training_texts(count: int = 2000, seed: int = 1) -> list[str]:
    """Unrelated text for the KL loss: documents about the reserved subjects, without the questions of `judged`."""
    drawn = texts_about(set_aside(Facts.load(tables_folder())), 2 * count, seed)
    return list(islice(judged().without(drawn), count))


def set_aside(facts: Facts, exclude: Iterable[str] = ()) -> Facts:
    """The tables with only those subjects that no evaluation edits."""
    names = set(exclude)
    subjects = tuple(
        subject
        for subject in facts.subjects
        if included("sweep", subject.name, share=0.2) and not names & {subject.name, *subject.aliases}
    )
    return replace(facts, subjects=subjects)
