"""Counterfactual edits of facts that a base model knows, with probes that it can fail.

The draw is the same for every model: facts have one seeded order, and a model uses the first facts that it knows. A
fact's new object and order of neighbours do not depend on the other known facts.

The base is also asked for the drawn facts in other forms. A paraphrase is tagged `known` if the base gives the old
object there, else `unknown`: whether an edit reaches a form that the base does not understand says little about it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from vllm_edit.edit import Edit, Probe, ProbeKind, Split
from vllm_edit.facts.counterfactual_edits import portability_probes, reverse_probes
from vllm_edit.facts.facts import Fact, Facts, Form
from vllm_edit.facts.pool import Known, Pool, Side
from vllm_edit.facts.recall import Question, right
from vllm_edit.models.base import Base
from vllm_edit.progress import Progress, silent

SWEEP_EDITS = 24
"""Number of edits for choosing a site; a model that knows fewer facts has its site at the published depth."""
_LEAST_NEIGHBOURS = 2
_NEIGHBOURS, _SAME_OBJECT, _SWEEP_NEIGHBOURS = 4, 2, 8
_OTHER_FORMS, _SWEEP_FORMS, _SWEEP_TRIED = 4, 4, 7
_SAME_SUBJECT, _UNRELATED = 2, 3


def judged_edits(
    pool: Pool,
    facts: Facts,
    base: Base,
    count: int,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Edit]:
    """Edits of held-out facts, at most `count`, spread evenly over the relations, each of another subject.

    All probes are `gate`. Paraphrases are a question, other statements, and the forms that atlas is never trained on.
    """
    own = pool.side("held_out")
    drawn = _drawn(own, facts, "held_out", count, seed)
    forms = [[*_other_forms(known, seed)[:_OTHER_FORMS], *known.fact.relation.held_out] for known in drawn]
    tagged = _tagged(base, drawn, forms, progress)
    return [
        _counterfactual(own, facts, known, some, "gate", seed, base) for known, some in zip(drawn, tagged, strict=True)
    ]


def chosen_edits(
    pool: Pool,
    facts: Facts,
    base: Base,
    count: int = SWEEP_EDITS,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Edit]:
    """Edits of facts on the `tune` side, at most `count`, for choosing site and damping. All probes are `tune`.

    Known paraphrases come first; unknown ones are used if there are too few.
    """
    own = pool.side("tune")
    drawn = _drawn(own, facts, "tune", count, seed)
    tagged = _tagged(base, drawn, [_other_forms(known, seed)[:_SWEEP_TRIED] for known in drawn], progress)
    edits = []
    for known, forms in zip(drawn, tagged, strict=True):
        first = sorted(forms, key=lambda form: forms[form] != "known")[:_SWEEP_FORMS]
        edits.append(_counterfactual(own, facts, known, {form: forms[form] for form in first}, "tune", seed, base))
    return edits


def _drawn(own: Pool, facts: Facts, side: Side, count: int, seed: int) -> list[Known]:
    """Facts of one side, round-robin over the relations, until `count` or until the subjects run out."""
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
                known = queue.pop(0)
                if drawn.setdefault(known.fact.subject.name, known) is known:
                    break
    return list(drawn.values())


def _can_be_judged(group: Sequence[Known]) -> bool:
    """True if there are neighbours with different objects: a model that continues a form with the same word for every
    subject knows nothing, though it is right for some."""
    return len(group) > _LEAST_NEIGHBOURS and len({known.fact.object for known in group}) > 1


def _counterfactual(
    own: Pool, facts: Facts, known: Known, paraphrases: Mapping[Form, str], split: Split, seed: int, base: Base
) -> Edit:
    """The fact with another object of its relation. `own`: its side of the pool; `paraphrases`: form → tag."""
    fact, rng = known.fact, _rng(known.fact, seed, "edit")
    subject, relation = fact.subject, fact.relation
    new = rng.choice(sorted({peer.object for peer in facts.by_relation[relation.id]} - {fact.object}))
    probes = [
        Probe(kind="paraphrase", prompt=form.fill(subject.name), chat=_asks_in_chat(base, form), split=split, tag=tag)
        for form, tag in paraphrases.items()
    ]
    if split == "gate":
        probes += reverse_probes(fact, new, rng)
        probes += portability_probes(facts, fact, new, rng, known.forms)
    probes += _neighbours(own, facts, fact, split, rng)
    same = [other for other in own.by_subject[subject.name] if other.fact.relation.id != relation.id]
    probes += [_keeping_probe("locality_subject", other, split) for other in same[:_SAME_SUBJECT]]
    far = [other for other in facts if other.relation.id != relation.id and other.subject.name != subject.name]
    rng.shuffle(far)  # all facts, so that the order is the same for every model
    probes += [_keeping_probe("unrelated", other, split) for other in own.of(far)[:_UNRELATED]]
    return Edit(
        prompt=known.prompt,
        subject=subject.name,
        relation=relation.id,
        target_new=new,
        target_true=fact.object,
        aliases=subject.aliases,
        probes=tuple(probes),
    )


def _neighbours(own: Pool, facts: Facts, fact: Fact, split: Split, rng: random.Random) -> list[Probe]:
    """Known facts of the same relation and other subjects.

    CounterFact's neighbours all have the same object, which an edit affects first. For judging, a few such neighbours
    are counted separately. For choosing a site, they come first, up to one half.
    """
    peers = [peer for peer in facts.by_relation[fact.relation.id] if peer.subject.name != fact.subject.name]
    rng.shuffle(peers)
    others = own.of(peers)
    if split == "tune":
        first = [other for other in others if other.fact.object == fact.object][: _SWEEP_NEIGHBOURS // 2]
        rest = [other for other in others if other not in first]
        return [_keeping_probe("locality", other, split) for other in [*first, *rest][:_SWEEP_NEIGHBOURS]]
    drawn, rest = others[:_NEIGHBOURS], others[_NEIGHBOURS:]
    alike = [other for other in rest if other.fact.object == fact.object][:_SAME_OBJECT]
    return [
        *(_keeping_probe("locality", other, split) for other in drawn),
        *(_keeping_probe("locality", other, split, "same_object") for other in alike),
    ]


def _keeping_probe(kind: ProbeKind, known: Known, split: Split, tag: str = "") -> Probe:
    """A known fact, in the statement in which the base gives it."""
    return Probe(kind=kind, prompt=known.prompt, target=known.fact.object, split=split, tag=tag)


def _other_forms(known: Known, seed: int) -> list[Form]:
    """A question, and statements other than the edit's prompt, in a seeded order specific to the fact."""
    questions = [form for form in known.fact.relation.trained if form.kind == "question"][:1]
    others = [form for form in known.fact.relation.trained if form != known.forms[0] and form not in questions]
    _rng(known.fact, seed, "forms").shuffle(others)
    return [*questions, *others]


def _tagged(
    base: Base, drawn: Sequence[Known], forms: Sequence[Sequence[Form]], progress: Progress
) -> list[dict[Form, str]]:
    """For each fact: form → `known` if the base gives the object there, else `unknown`."""
    questions = [
        Question(known.fact, form, _asks_in_chat(base, form))
        for known, some in zip(drawn, forms, strict=True)
        for form in some
    ]
    answers = iter(right(base, questions, progress, "paraphrases asked for"))
    return [{form: "known" if next(answers) else "unknown" for form in some} for some in forms]


def _asks_in_chat(base: Base, form: Form) -> bool:
    """True for a question if the base has a chat template."""
    return form.kind == "question" and bool(getattr(base.tokenizer, "chat_template", None))


def _rng(fact: Fact, seed: int, what: str) -> random.Random:
    """A random state specific to the fact, independent of the other known facts."""
    return random.Random(f"{what}:{seed}:{fact.relation.id}:{fact.subject.name}")
