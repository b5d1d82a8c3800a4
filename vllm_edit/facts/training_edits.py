"""Counterfactual edits for training a hypernetwork: the same facts repeatedly, with other targets, forms and probes."""

from __future__ import annotations

import random
from dataclasses import replace

from vllm_edit.edit import Edit
from vllm_edit.facts.counterfactual_edits import counterfactual
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.pool import Pool

_RETARGETED = 0.7  # the other edits keep the probes that go one hop beyond the answer


def repeated_edits(own: Facts, facts: Facts, count: int, rng: random.Random) -> list[Edit]:
    """`count` edits of the facts `own`, drawn repeatedly. Every relation has the same probability.

    Neighbours and all other probes are of `own` too. Only new objects come from all of the tables `facts`: those of a
    part of a relation are not enough to learn to write any object. There are no edits if no relation of `own` has two
    objects.
    """
    groups = [group for group in own.by_relation.values() if len({fact.object for fact in group}) > 1]
    edits = []
    for _ in range(count if groups else 0):
        fact = rng.choice(rng.choice(groups))
        edit = counterfactual(own, fact, rng)
        if rng.random() < _RETARGETED:
            objects = {peer.object for peer in facts.by_relation[fact.relation.id]} - {fact.object}
            edit = _retargeted(edit, rng.choice(sorted(objects)))
        edits.append(edit)
    return edits


def pool_edits(pool: Pool, facts: Facts, count: int, *, seed: int = 0) -> list[Edit]:
    """`count` edits of known facts on the `tune` side, for training: `eval known` judges the other side only.

    Args:
        pool: the facts that the model knows.
        facts: the tables that it was asked for.
        count: number of edits.
        seed: of the draws.
    """
    return repeated_edits(known_facts(pool.side("tune"), facts), facts, count, random.Random(f"training:{seed}"))


def known_facts(pool: Pool, facts: Facts) -> Facts:
    """The tables with only those facts that are in the pool."""
    known = {(known.fact.relation.id, known.fact.subject.name) for known in pool.known}
    subjects = []
    for subject in facts.subjects:
        held = {name: fact for name, fact in subject.facts.items() if (fact.relation.id, subject.name) in known}
        if held:
            own = replace(subject, facts={})
            own.facts.update({name: replace(fact, subject=own) for name, fact in held.items()})
            subjects.append(own)
    return replace(facts, subjects=tuple(subjects))


def _retargeted(edit: Edit, new: str) -> Edit:
    """The edit with another new answer, without the probes whose answers follow from the old one."""
    probes = []
    for probe in edit.probes:
        if probe.kind == "portability" and probe.target == edit.target_new:
            probes.append(probe.model_copy(update={"target": new}))
        elif probe.kind not in ("portability", "reverse"):
            probes.append(probe)
    return edit.model_copy(update={"target_new": new, "probes": tuple(probes)})
