"""Counterfactual edits of facts that a base model knows, with probes that it can fail.

The draw is the same for every model: facts stand in one seeded order, and a model takes the first of them that it
knows. A fact has the same new object and the same order of neighbours whatever else is known.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from vllm_edit.facts.asking import Progress, Question, right
from vllm_edit.facts.edits import portability_probes, reverse_probes
from vllm_edit.facts.facts import Fact, Facts, Form
from vllm_edit.facts.pool import Known, Pool, Side
from vllm_edit.models.base import Base
from vllm_edit.patch import Edit, Probe, ProbeKind, Split

SWEEP_EDITS = 24
"""Edits that a site is chosen by; a model that knows fewer facts has its site at the published depth."""
_LEAST_NEIGHBOURS = 2
_NEIGHBOURS, _SAME_OBJECT, _SWEEP_NEIGHBOURS = 4, 2, 8
_OTHER_FORMS, _SWEEP_FORMS, _SWEEP_TRIED = 3, 4, 6
_SAME_SUBJECT, _UNRELATED = 2, 3


def judged_edits(pool: Pool, facts: Facts, count: int | None = None, *, seed: int = 0) -> list[Edit]:
    """Edits of held-out facts, at most `count`, spread evenly over the relations, each of another subject.

    All probes are `gate`. Paraphrases are tagged `known` (the base gives the old object there), `trained` or
    `held_out` (other forms of the tables, which the base may not understand).
    """
    own = pool.side("held_out")
    edits = []
    for one in _drawn(own, facts, "held_out", count, seed):
        others = _other_forms(one, seed)[:_OTHER_FORMS]
        forms = _tagged(one.forms[1:], "known") | _tagged(others, "trained")
        forms |= _tagged(one.fact.relation.held_out, "held_out")
        edits.append(_counterfactual(own, facts, one, forms, "gate", seed))
    return edits


def chosen_edits(
    pool: Pool,
    facts: Facts,
    base: Base,
    count: int = SWEEP_EDITS,
    *,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> list[Edit]:
    """Edits of facts on the `tune` side, at most `count`: to choose site and damping by. All probes are `tune`.

    The base is asked for these facts in other forms too, and the paraphrases are those that it answers right: a form
    that it does not understand says nothing about an edit. Others fill up where there are too few.
    """
    own = pool.side("tune")
    drawn = _drawn(own, facts, "tune", count, seed)
    others = [_other_forms(one, seed)[:_SWEEP_TRIED] for one in drawn]
    questions = [
        Question(one.fact, form, pool.asks_in_chat(form))
        for one, forms in zip(drawn, others, strict=True)
        for form in forms
    ]
    answers = iter(right(base, questions, progress, "other forms asked for"))
    edits = []
    for one, forms in zip(drawn, others, strict=True):
        known = [form for form in forms if next(answers)]
        paraphrases = _tagged([*one.forms[1:], *known], "known") | _tagged(
            [form for form in forms if form not in known], "trained"
        )
        first = dict(list(paraphrases.items())[:_SWEEP_FORMS])
        edits.append(_counterfactual(own, facts, one, first, "tune", seed))
    return edits


def _drawn(own: Pool, facts: Facts, side: Side, count: int | None, seed: int) -> list[Known]:
    """Facts of one side, the relations taking turns, until `count` or until the subjects run out."""
    rng = random.Random(f"known:{side}:{seed}")
    groups = [list(group) for group in facts.by_relation.values()]
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    queues = [queue for group in groups if _can_be_judged(queue := own.of(group))]
    drawn: dict[str, Known] = {}
    while any(queues):
        for queue in queues:
            if len(drawn) == count:
                return list(drawn.values())
            while queue:
                one = queue.pop(0)
                if drawn.setdefault(one.fact.subject.name, one) is one:
                    break
    return list(drawn.values())


def _can_be_judged(group: Sequence[Known]) -> bool:
    """True if there are neighbours, and not all of one object: a model that goes on from a form with the same word for
    every subject knows nothing, though it is right for some."""
    return len(group) > _LEAST_NEIGHBOURS and len({one.fact.object for one in group}) > 1


def _counterfactual(
    own: Pool, facts: Facts, known: Known, paraphrases: Mapping[Form, str], split: Split, seed: int
) -> Edit:
    """The fact with another object of its relation. own: its side of the pool. paraphrases: form → tag."""
    fact, rng = known.fact, _rng(known.fact, seed, "edit")
    subject, relation = fact.subject, fact.relation
    new = rng.choice(sorted({peer.object for peer in facts.by_relation[relation.id]} - {fact.object}))
    probes = [_probe("paraphrase", fact, form, own, split, tag=tag, target=None) for form, tag in paraphrases.items()]
    if split == "gate":
        probes += reverse_probes(fact, new, rng)
        probes += portability_probes(facts, fact, new, rng, known.forms)
    probes += _neighbours(own, facts, fact, split, rng)
    same = [one for one in own.by_subject[subject.name] if one.fact is not fact]
    probes += [_asked("locality_subject", one, own, split, rng) for one in same[:_SAME_SUBJECT]]
    far = [other for other in facts if other.relation is not relation and other.subject is not subject]
    rng.shuffle(far)  # all facts, so that another model, which knows others of them, is asked in the same order
    probes += [_asked("unrelated", one, own, split, rng) for one in own.of(far)[:_UNRELATED]]
    return Edit(
        prompt=known.statement.fill(subject.name),
        subject=subject.name,
        relation=relation.id,
        target_new=new,
        target_true=fact.object,
        aliases=subject.aliases,
        probes=tuple(probes),
    )


def _neighbours(own: Pool, facts: Facts, fact: Fact, split: Split, rng: random.Random) -> list[Probe]:
    """Known facts of the same relation and other subjects; of those with the same object some are counted apart.

    CounterFact's neighbours all have the same object, which is what an edit moves first.
    """
    peers = [peer for peer in facts.by_relation[fact.relation.id] if peer is not fact]
    rng.shuffle(peers)
    others = own.of(peers)
    if split == "tune":
        return [_asked("locality", one, own, split, rng) for one in others[:_SWEEP_NEIGHBOURS]]
    drawn, rest = others[:_NEIGHBOURS], others[_NEIGHBOURS:]
    alike = [one for one in rest if one.fact.object == fact.object][:_SAME_OBJECT]
    return [
        *(_asked("locality", one, own, split, rng) for one in drawn),
        *(_asked("locality", one, own, split, rng, tag="same_object") for one in alike),
    ]


def _asked(kind: ProbeKind, one: Known, own: Pool, split: Split, rng: random.Random, tag: str = "") -> Probe:
    """A known fact, asked in a form in which the base gives it."""
    return _probe(kind, one.fact, rng.choice(one.forms), own, split, tag=tag, target=one.fact.object)


def _probe(kind: ProbeKind, fact: Fact, form: Form, own: Pool, split: Split, *, tag: str, target: str | None) -> Probe:
    return Probe(
        kind=kind,
        prompt=form.fill(fact.subject.name),
        target=target,
        chat=own.asks_in_chat(form),
        split=split,
        tag=tag,
    )


def _other_forms(one: Known, seed: int) -> list[Form]:
    """Trained forms in which the fact was not found known, in an order of its own."""
    forms = [form for form in one.fact.relation.trained if form not in one.forms]
    _rng(one.fact, seed, "forms").shuffle(forms)
    return forms


def _tagged(forms: Sequence[Form], tag: str) -> dict[Form, str]:
    return dict.fromkeys(forms, tag)


def _rng(fact: Fact, seed: int, what: str) -> random.Random:
    """A random state of the fact's own: it does not depend on what else is known."""
    return random.Random(f"{what}:{seed}:{fact.relation.id}:{fact.subject.name}")
