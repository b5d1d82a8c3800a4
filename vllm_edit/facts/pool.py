"""The pool: facts of the tables that a base model knows, each with the forms in which it gives them.

A fact is known if the base gives its object after the relation's first statement: an edit of it needs a prompt after
which the base says what the edit replaces. The relation's first question is the second form. It does not decide: models
that go on with text (all base models, and instruct models outside a chat turn) do not answer a bare question at all.

Subjects are on one of two sides for good. What is chosen (site, damping, demonstrations) is chosen on `tune`; what is
judged is judged on `held_out`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from vllm_edit.facts.facts import Fact, Facts, Form
from vllm_edit.facts.split import included

Side = Literal["tune", "held_out"]

TUNE_SHARE = 1 / 3
"""Share of subjects to choose by. The split is atlas's with a larger share, so that what its sweep has seen is here."""


@dataclass(frozen=True)
class Known:
    """A known fact. statement: after this the base gives the object. question: so it does here; None: it does not."""

    fact: Fact
    statement: Form
    question: Form | None

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms in which the base gives the object."""
        return (self.statement,) if self.question is None else (self.statement, self.question)


@dataclass(frozen=True)
class Pool:
    """What one base model knows.

    asked: relation id → facts of it that the base was asked.  chat: questions were asked as turns of the chat template.
    """

    known: tuple[Known, ...]
    asked: Mapping[str, int]
    chat: bool

    @cached_property
    def _places(self) -> dict[tuple[str, str], Known]:
        return {(one.fact.relation.id, one.fact.subject.name): one for one in self.known}

    def of(self, facts: Iterable[Fact]) -> list[Known]:
        """Those of `facts` that are known, in their order."""
        found = (self._places.get((fact.relation.id, fact.subject.name)) for fact in facts)
        return [one for one in found if one is not None]

    @cached_property
    def by_relation(self) -> dict[str, list[Known]]:
        """Known facts by relation id, in table order."""
        grouped: dict[str, list[Known]] = {}
        for one in self.known:
            grouped.setdefault(one.fact.relation.id, []).append(one)
        return grouped

    @cached_property
    def by_subject(self) -> dict[str, list[Known]]:
        """Known facts by the subject's name."""
        grouped: dict[str, list[Known]] = {}
        for one in self.known:
            grouped.setdefault(one.fact.subject.name, []).append(one)
        return grouped

    @property
    def sizes(self) -> dict[str, int]:
        """Relation id → how many of its facts are known; relations of which none is known too."""
        return {relation: len(self.by_relation.get(relation, ())) for relation in self.asked}

    def asks_in_chat(self, form: Form) -> bool:
        """True if the form is asked as a chat turn: a question, where the base has a chat template."""
        return self.chat and form.kind == "question"

    def side(self, side: Side) -> Pool:
        """The pool less everything about subjects of the other side."""
        return Pool(tuple(one for one in self.known if side_of(one.fact) == side), self.asked, self.chat)

    def as_record(self) -> dict[str, Any]:
        """JSON-able: what was asked, and the texts of the forms that were answered right. `from_record` reads it."""
        known = [
            {
                "relation": one.fact.relation.id,
                "subject": one.fact.subject.name,
                "object": one.fact.object,
                "statement": one.statement.text,
                "question": None if one.question is None else one.question.text,
            }
            for one in self.known
        ]
        return {"asked": dict(self.asked), "chat": self.chat, "known": known}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], facts: Facts) -> Pool:
        """The pool of a record. Facts and forms that the tables no longer hold are left out."""
        known = []
        for entry in record["known"]:
            fact = facts.lookup.get((entry["relation"], entry["subject"]))
            if fact is None or fact.object != entry["object"]:
                continue
            forms = {form.text: form for form in fact.relation.trained}
            statement, question = forms.get(entry["statement"]), forms.get(entry["question"])
            if statement is not None:
                known.append(Known(fact, statement, question))
        return cls(tuple(known), dict(record["asked"]), bool(record["chat"]))


def side_of(fact: Fact) -> Side:
    return "tune" if included("sweep", fact.subject.name, share=TUNE_SHARE) else "held_out"


def first_form(forms: Iterable[Form], kind: Literal["statement", "question"]) -> Form | None:
    """The first form of a kind: the plainest one, as the tables are written."""
    return next((form for form in forms if form.kind == kind), None)


def bank_records(pool: Pool) -> list[dict[str, Any]]:
    """Records for IKE's bank (`ike.bank`): each known fact with the other ways to ask for it."""
    return [
        {
            "prompt": one.statement.fill(one.fact.subject.name),
            "subject": one.fact.subject.name,
            "relation": one.fact.relation.id,
            "object": one.fact.object,
            "paraphrases": [
                form.fill(one.fact.subject.name) for form in one.fact.relation.trained if form is not one.statement
            ],
        }
        for one in pool.known
    ]
