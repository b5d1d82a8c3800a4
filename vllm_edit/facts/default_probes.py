"""Default keeping probes: facts that the base knows, which a gate asks for edits without declared keeping probes.

They are not part of the patch: its name is a digest of the declaration.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import ceil

from vllm_edit.edit import Edit, Probe, ProbeKind
from vllm_edit.evaluation.questions import DEFAULT
from vllm_edit.facts.facts import Facts, Relation
from vllm_edit.facts.pool import Known, Pool
from vllm_edit.text.matching import normalise
from vllm_edit.text.name_words import last_word
from vllm_edit.text.subjects import Subjects

_OF_EDIT, _OF_PATCH = 8, 64
"""Maximum probes per edit and per patch; in a patch with many edits only some get probes."""
_LEAST_NEIGHBOURS = 2
_ALIKE = 4
"""Maximum probes per edit about subjects whose name ends as the edit's."""


def default_probes(pool: Pool, facts: Facts, edits: Sequence[Edit]) -> list[tuple[Probe, ...]]:
    """For each edit the probes to add; none if it declares keeping probes.

    Known facts about subjects whose name has the last word of the edit's subject come first ("Tokyo Tower" for "Eiffel
    Tower"). They are of any relation and get the kind `locality`: an edit at the subject's last token changes these
    first. Then come known facts of the edit's relation, if a table has it, as `locality`, else known facts of any
    relation, as `unrelated`. No probe mentions a subject of the edits. All are from the held-out side, on which nothing
    was chosen.
    """
    lacking = [index for index, edit in enumerate(edits) if not any(probe.keeps for probe in edit.probes)]
    probed = {*lacking[:: max(1, ceil(len(lacking) * _OF_EDIT / _OF_PATCH))]}
    edited = Subjects([(edit.subject, *edit.aliases) for edit in edits])
    free = [known for known in pool.side("held_out").known if not edited.mentioned([known.prompt])]
    return [tuple(_of_edit(free, facts, edit)) if index in probed else () for index, edit in enumerate(edits)]


def relation_of(facts: Facts, edit: Edit) -> Relation | None:
    """The tables' relation that an edit changes; None if it is ambiguous.

    Found by its id (`countries.capital`), by the edit's prompt, by its name if an object belongs to the relation, or by
    the objects alone.
    """
    objects = {key: {normalise(fact.object) for fact in group} for key, group in facts.by_relation.items()}
    targets = {normalise(target) for target in (edit.target_new, edit.target_true) if target}

    def asks(relation: Relation) -> bool:
        return any(form.fill(edit.subject) == edit.prompt for form in (*relation.trained, *relation.held_out))

    for fits in (
        lambda relation: relation.id == edit.relation,
        asks,
        lambda relation: relation.name == edit.relation and bool(targets & objects[relation.id]),
        lambda relation: targets <= objects[relation.id],
    ):
        found = [relation for relation in facts.relations if fits(relation)]
        if len(found) == 1:
            return found[0]
    return None


def _of_edit(free: Sequence[Known], facts: Facts, edit: Edit) -> list[Probe]:
    drawing = random.Random(f"{edit.subject}:{edit.prompt}")
    relation, ending = relation_of(facts, edit), last_word(edit.subject)
    alike = [known for known in free if ending and last_word(known.fact.subject.name) == ending]
    alike = drawing.sample(alike, min(_ALIKE, len(alike)))
    others = [known for known in free if known not in alike]
    neighbours = [known for known in others if relation and known.fact.relation.id == relation.id]
    kind: ProbeKind = "locality" if len(neighbours) >= _LEAST_NEIGHBOURS else "unrelated"
    some = neighbours if kind == "locality" else others
    chosen = drawing.sample(some, min(_OF_EDIT - len(alike), len(some)))
    return _probes("locality", alike) + _probes(kind, chosen)


def _probes(kind: ProbeKind, some: Sequence[Known]) -> list[Probe]:
    return [Probe(kind=kind, prompt=known.prompt, target=known.fact.object, tag=DEFAULT) for known in some]
