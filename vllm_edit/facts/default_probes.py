"""Probes for edits that declare none to keep: facts that the base knows, which a gate asks besides the patch's own.

They are no part of the patch: names are digests of what a person declared.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import ceil

from vllm_edit.evaluation.questions import DEFAULT
from vllm_edit.facts.facts import Facts, Relation
from vllm_edit.facts.pool import Known, Pool
from vllm_edit.patch import LOCALITY_KINDS, Edit, Probe, ProbeKind
from vllm_edit.subjects import Subjects
from vllm_edit.text import normalise

_OF_EDIT, _OF_PATCH = 8, 64
"""Most probes of an edit and of a patch: of one with more edits than the second allows, only some have probes."""
_LEAST_NEIGHBOURS = 2


def default_probes(pool: Pool, facts: Facts, edits: Sequence[Edit]) -> list[tuple[Probe, ...]]:
    """For each edit the probes to add: none where it declares some to keep.

    Known facts of the edit's relation, if a table has it, as `locality`; else known facts of any relation, as
    `unrelated`. None mentions a subject of the edits. They are of the held-out side, which nothing was chosen on.
    """
    lacking = [index for index, edit in enumerate(edits) if not any(p.kind in LOCALITY_KINDS for p in edit.probes)]
    probed = {*lacking[:: max(1, ceil(len(lacking) * _OF_EDIT / _OF_PATCH))]}
    edited = Subjects([(edit.subject, *edit.aliases) for edit in edits])
    free = [one for one in pool.side("held_out").known if not edited.mentioned([one.prompt])]
    return [tuple(_of_edit(free, facts, edit)) if index in probed else () for index, edit in enumerate(edits)]


def relation_of(facts: Facts, edit: Edit) -> Relation | None:
    """The tables' relation that an edit changes; None where that is not clear.

    By its id (`countries.capital`), by the edit's prompt, by its name where an object is one of the relation's, or by
    its objects alone.
    """
    objects = {key: {normalise(fact.object) for fact in group} for key, group in facts.by_relation.items()}
    targets = {normalise(target) for target in (edit.target_new, edit.target_true) if target}

    def asks(one: Relation) -> bool:
        return any(form.fill(edit.subject) == edit.prompt for form in (*one.trained, *one.held_out))

    for fits in (
        lambda one: one.id == edit.relation,
        asks,
        lambda one: one.name == edit.relation and bool(targets & objects[one.id]),
        lambda one: targets <= objects[one.id],
    ):
        found = [one for one in facts.relations if fits(one)]
        if len(found) == 1:
            return found[0]
    return None


def _of_edit(free: Sequence[Known], facts: Facts, edit: Edit) -> list[Probe]:
    relation = relation_of(facts, edit)
    neighbours = [one for one in free if relation and one.fact.relation.id == relation.id]
    kind: ProbeKind = "locality" if len(neighbours) >= _LEAST_NEIGHBOURS else "unrelated"
    some = neighbours if kind == "locality" else list(free)
    chosen = random.Random(f"{edit.subject}:{edit.prompt}").sample(some, min(_OF_EDIT, len(some)))
    return [Probe(kind=kind, prompt=one.prompt, target=one.fact.object, tag=DEFAULT) for one in chosen]
