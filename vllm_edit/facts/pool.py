"""The pool: facts of the tables that a base model knows, each with the statements in which it gives them.

A fact is known if the base continues one of its statements with the object: an edit needs a prompt after which the base
gives the answer that the edit replaces. Questions do not count: models that continue text (all base models, and
instruct models outside a chat turn) do not answer a bare question.

Each subject belongs to one of two fixed sides. Choices (site, damping, demonstrations) use `tune`; judging uses
`held_out`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import TypeAdapter

from vllm_edit.facts.facts import Fact, Facts, Form
from vllm_edit.facts.split import included
from vllm_edit.ike import bank
from vllm_edit.json_value import JSONObject, JSONValue

Side = Literal["tune", "held_out"]

TUNE_SHARE = 1 / 3
"""Share of the `tune` subjects. The split extends atlas's, so that all subjects of its sweep are on this side."""


@dataclass(frozen=True)
class Known:
    """A known fact, and the statements in which the base gives it, the relation's best first."""

    fact: Fact
    forms: tuple[Form, ...]

    @property
    def prompt(self) -> str:
        """The best statement about the subject, which the base continues with the object."""
        return self.forms[0].fill(self.fact.subject.name)


@dataclass(frozen=True)
class Pool:
    """The facts that one base model knows. `asked`: relation id → number of facts asked for."""

    known: tuple[Known, ...]
    asked: Mapping[str, int]

    @cached_property
    def _places(self) -> dict[tuple[str, str], Known]:
        return {(known.fact.relation.id, known.fact.subject.name): known for known in self.known}

    def of(self, facts: Iterable[Fact]) -> list[Known]:
        """Those of `facts` that are known, in their order."""
        found = (self._places.get((fact.relation.id, fact.subject.name)) for fact in facts)
        return [known for known in found if known is not None]

    @cached_property
    def by_relation(self) -> dict[str, list[Known]]:
        """Known facts by relation id, in table order."""
        grouped: dict[str, list[Known]] = {}
        for known in self.known:
            grouped.setdefault(known.fact.relation.id, []).append(known)
        return grouped

    @cached_property
    def by_subject(self) -> dict[str, list[Known]]:
        """Known facts by the subject's name."""
        grouped: dict[str, list[Known]] = {}
        for known in self.known:
            grouped.setdefault(known.fact.subject.name, []).append(known)
        return grouped

    @property
    def sizes(self) -> dict[str, int]:
        """Relation id → number of known facts, including 0."""
        return {relation: len(self.by_relation.get(relation, ())) for relation in self.asked}

    def side(self, side: Side) -> Pool:
        """The pool without subjects of the other side."""
        return Pool(tuple(known for known in self.known if side_of(known.fact) == side), self.asked)

    def as_record(self) -> JSONObject:
        """The pool as JSON-able values: counts asked, and known facts with their statements. `from_record` reads it."""
        records = [
            {
                "relation": known.fact.relation.id,
                "subject": known.fact.subject.name,
                "object": known.fact.object,
                "forms": [form.text for form in known.forms],
            }
            for known in self.known
        ]
        return {"asked": dict(self.asked), "known": records}

    @classmethod
    def from_record(cls, record: JSONValue, facts: Facts) -> Pool:
        """The pool of a record. Facts and forms that the tables no longer hold are left out."""
        stored = _STORED.validate_python(record)
        known = []
        for entry in stored.known:
            fact = facts.lookup.get((entry.relation, entry.subject))
            if fact is None or fact.object != entry.object:
                continue
            held = {form.text: form for form in fact.relation.trained}
            forms = tuple(held[text] for text in entry.forms if text in held)
            if forms:
                known.append(Known(fact, forms))
        return cls(tuple(known), stored.asked)


@dataclass(frozen=True)
class _StoredFact:
    relation: str
    subject: str
    object: str
    forms: tuple[str, ...]


@dataclass(frozen=True)
class _Stored:
    """A pool's record, as `Pool.as_record` makes it."""

    asked: dict[str, int]
    known: tuple[_StoredFact, ...]


_STORED = TypeAdapter(_Stored)


def side_of(fact: Fact) -> Side:
    return "tune" if included("sweep", fact.subject.name, share=TUNE_SHARE) else "held_out"


def bank_records(pool: Pool) -> list[bank.Fact]:
    """The facts for IKE's bank: each known fact with its other prompts as paraphrases."""
    return [
        bank.Fact(
            prompt=known.prompt,
            subject=known.fact.subject.name,
            relation=known.fact.relation.id,
            object=known.fact.object,
            paraphrases=tuple(
                form.fill(known.fact.subject.name) for form in known.fact.relation.trained if form != known.forms[0]
            ),
        )
        for known in pool.known
    ]
