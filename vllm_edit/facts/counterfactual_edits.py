"""Counterfactual edits of atlas's facts, with probes: a seeded set for choosing the site, others for judging.

The two never share a subject: a fifth of all subjects is set aside for choosing the site.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from vllm_edit.edit import Edit, Probe, ProbeKind, Split
from vllm_edit.errors import EditError
from vllm_edit.facts import tables_folder
from vllm_edit.facts.facts import Fact, Facts, Form
from vllm_edit.facts.split import included

_TUNE_PARAPHRASES, _GATE_PARAPHRASES, _NEIGHBOURS = 3, 4, 4
_KEPT, _KEPT_ALIKE = 8, 4


def sweep_edits(seed: int = 0, count: int = 24) -> list[Edit]:
    """Edits that only the choice of site, damping and settings may look at; all their probes are `tune`."""
    facts = Facts.load(tables_folder())
    edits = draw_edits(facts, count, seed=seed, for_sweep=True)
    return [
        edit.model_copy(update={"probes": tuple(p.model_copy(update={"split": "tune"}) for p in edit.probes)})
        for edit in edits
    ]


def draw_edits(facts: Facts, count: int, *, seed: int, for_sweep: bool = False) -> list[Edit]:
    """`count` counterfactual edits, spread evenly over the relations, each of another subject.

    Raises:
        EditError: the tables hold fewer subjects.
    """
    edits: list[Edit] = []
    for edit in _candidates(facts, random.Random(f"edits:{seed}:{for_sweep}"), for_sweep):
        if len(edits) == count:
            return edits
        edits.append(edit)
    if len(edits) < count:
        raise EditError(f"asked for {count} edits, but these tables give only {len(edits)} with distinct subjects")
    return edits


def _candidates(facts: Facts, rng: random.Random, for_sweep: bool) -> Iterator[Edit]:
    """Round-robin over the relations until the subjects run out."""
    queues = [list(group) for group in facts.by_relation.values() if len({fact.object for fact in group}) > 1]
    for queue in queues:
        rng.shuffle(queue)
    used: set[str] = set()
    while any(queues):
        rng.shuffle(queues)
        for queue in queues:
            while queue:
                fact = queue.pop()
                name = fact.subject.name
                if name not in used and included("sweep", name, share=0.2) is for_sweep:
                    used.add(name)
                    yield counterfactual(facts, fact, rng)
                    break


def counterfactual(facts: Facts, fact: Fact, rng: random.Random) -> Edit:
    """An edit of `fact` to another object of its relation, with every kind of probe that the tables allow."""
    relation, subject = fact.relation, fact.subject
    peers = facts.by_relation[relation.id]
    new = rng.choice(sorted({peer.object for peer in peers} - {fact.object}))
    prompt = rng.choice([form for form in relation.trained if form.kind == "statement"])
    others = rng.sample([form for form in relation.trained if form is not prompt], k=len(relation.trained) - 1)
    tune, gate = others[:_TUNE_PARAPHRASES], others[_TUNE_PARAPHRASES : _TUNE_PARAPHRASES + _GATE_PARAPHRASES]
    probes = [
        *probes_in("paraphrase", tune, subject.name, None, rng, split="tune", tag="trained"),
        *probes_in("paraphrase", gate, subject.name, None, rng, tag="trained"),
        *probes_in("paraphrase", relation.held_out, subject.name, None, rng, tag="held_out"),
        *reverse_probes(fact, new, rng),
        *portability_probes(facts, fact, new, rng),
        *_neighbours(peers, fact, rng),
    ]
    for own in subject.facts.values():
        if own is not fact:
            forms = rng.sample(own.relation.trained, k=1)
            probes += probes_in("locality_subject", forms, subject.name, own.object, rng)
    elsewhere_known = [group for key, group in facts.by_relation.items() if key != relation.id and group]
    for elsewhere in rng.sample(elsewhere_known, k=min(3, len(elsewhere_known))):
        far = rng.choice(elsewhere)
        if far.subject is not subject:
            probes += probes_in("unrelated", [rng.choice(far.relation.trained)], far.subject.name, far.object, rng)
    return Edit(
        prompt=prompt.fill(subject.name),
        subject=subject.name,
        relation=relation.id,
        target_new=new,
        target_true=fact.object,
        aliases=subject.aliases,
        probes=tuple(probes),
    )


def probes_in(
    kind: ProbeKind,
    forms: Iterable[Form],
    name: str,
    target: str | None,
    rng: random.Random,
    *,
    split: Split = "gate",
    tag: str = "",
) -> list[Probe]:
    """A probe for each form; every other question is asked as a chat turn."""
    return [
        Probe(
            kind=kind,
            prompt=form.fill(name),
            target=target,
            chat=form.kind == "question" and rng.random() < 0.5,
            split=split,
            tag=tag,
        )
        for form in forms
    ]


def reverse_probes(fact: Fact, new: str, rng: random.Random) -> list[Probe]:
    """The reverse question, from the new object to the subject, if the relation has reverse forms."""
    if not fact.relation.reverse:
        return []
    return probes_in("reverse", [rng.choice(fact.relation.reverse)], new, fact.subject.name, rng)


def portability_probes(
    facts: Facts, fact: Fact, new: str, rng: random.Random, forms: Sequence[Form] | None = None
) -> list[Probe]:
    """Probes by an alias of the subject, in one of `forms` (default: any trained form), and one hop further (if the
    tables hold the new object's own fact)."""
    probes: list[Probe] = []
    if fact.subject.aliases:
        form = rng.choice(fact.relation.trained if forms is None else forms)
        probes += probes_in("portability", [form], rng.choice(fact.subject.aliases), new, rng, tag="alias")
    for hop in facts.hops:
        final = facts.follow(hop, new) if hop.first.id == fact.relation.id else None
        if final is not None:
            form = rng.choice(hop.forms)
            probes += probes_in("portability", [form], fact.subject.name, final, rng, tag="one_hop")
    return probes


def _neighbours(peers: list[Fact], fact: Fact, rng: random.Random) -> list[Probe]:
    """Probes of the same relation about other subjects: some for compiling (`tune`), others for judging (`gate`).

    Gate probes are drawn from all subjects. Up to two more have the same true object, like all of CounterFact's
    neighbours; they are tagged `same_object` and counted separately.
    """
    others = [peer for peer in peers if peer is not fact]
    rng.shuffle(others)
    drawn, rest = others[:_NEIGHBOURS], others[_NEIGHBOURS:]
    alike = [peer for peer in rest if peer.object == fact.object]
    unlike = [peer for peer in rest if peer.object != fact.object]
    judged: list[tuple[list[Fact], Split, str]] = [
        (drawn, "gate", ""),
        (alike[:2], "gate", "same_object"),
        ([*alike[2 : 2 + _KEPT_ALIKE], *unlike[: _KEPT - _KEPT_ALIKE]], "tune", ""),
    ]
    return [
        probe
        for group, split, tag in judged
        for peer in group
        for probe in probes_in(
            "locality", [rng.choice(peer.relation.trained)], peer.subject.name, peer.object, rng, split=split, tag=tag
        )
    ]
