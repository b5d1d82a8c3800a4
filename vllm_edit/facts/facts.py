"""Fact tables: subjects with their objects, and the prompt forms of each relation (see `facts/README.md`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from vllm_edit.errors import EditError
from vllm_edit.invalid import problems_of
from vllm_edit.text.utf8 import NotUTF8, read_text
from vllm_edit.text.yaml_document import NotYaml, YamlDocument

T = TypeVar("T")

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Form:
    """One way to ask for a relation: text with `{s}` (in reverse: `{o}`) that ends right before the answer."""

    text: str
    kind: Literal["statement", "question"]

    def fill(self, name: str) -> str:
        return self.text.replace("{s}", name).replace("{o}", name)


@dataclass(frozen=True)
class Relation:
    """A relation of one table: trained forms, held-out forms, and reverse forms (possibly none)."""

    name: str
    table: str
    language: Language
    trained: tuple[Form, ...]
    held_out: tuple[Form, ...]
    reverse: tuple[Form, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.table}.{self.name}"


@dataclass(frozen=True)
class Fact:
    """subject, relation, object."""

    subject: Subject
    relation: Relation
    object: str


@dataclass(frozen=True, eq=False)
class Subject:
    """A row of a table: its name, other names and facts by relation name."""

    name: str
    aliases: tuple[str, ...]
    table: str
    facts: dict[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True)
class Hop:
    """A two-step question: the object of `first` is the subject of `then`; the answer names both, bridge first."""

    first: Relation
    then: Relation
    forms: tuple[Form, ...]
    held_out: tuple[Form, ...]

    def answer(self, bridge: str, final: str) -> str:
        return f"{bridge}，{final}" if self.first.language == "zh" else f"{bridge}, {final}"


@dataclass(frozen=True)
class Facts:
    """All tables of a folder."""

    subjects: tuple[Subject, ...]
    relations: tuple[Relation, ...]
    hops: tuple[Hop, ...]

    @classmethod
    def load(cls, folder: str | Path) -> Facts:
        """Read every `<table>.csv` with its `<table>.yaml`, and `hops.yaml` if there is one.

        Raises:
            EditError: with every problem found, one per line.
        """
        folder = Path(folder)
        tables = sorted(folder.glob("*.csv"))
        if not tables:
            raise EditError(f"{folder}: expected fact tables (<table>.csv with <table>.yaml), found none")
        problems: list[str] = []
        subjects: list[Subject] = []
        relations: dict[str, Relation] = {}
        for path in tables:
            _read_table(path, subjects, relations, problems)
        hops = _read_hops(folder / "hops.yaml", relations, problems)
        names: dict[str, Subject] = {}
        for subject in subjects:
            for name in (subject.name, *subject.aliases):
                if names.setdefault(name, subject) is not subject:
                    problems.append(f"{name!r} names two subjects (tables {names[name].table} and {subject.table})")
        if problems:
            raise EditError("\n".join(problems))
        return cls(tuple(subjects), tuple(relations.values()), hops)

    def __iter__(self) -> Iterator[Fact]:
        for subject in self.subjects:
            yield from subject.facts.values()

    @cached_property
    def by_relation(self) -> dict[str, list[Fact]]:
        """Facts by relation id, in table order."""
        grouped: dict[str, list[Fact]] = {relation.id: [] for relation in self.relations}
        for fact in self:
            grouped[fact.relation.id].append(fact)
        return grouped

    @cached_property
    def lookup(self) -> dict[tuple[str, str], Fact]:
        """(table, subject name or alias) with relation name joined by a dot → fact, for following hops."""
        return {(fact.relation.id, fact.subject.name): fact for fact in self}

    def follow(self, hop: Hop, bridge: str) -> str | None:
        """The object that `hop.then` gives for the entity `bridge`, or None if the tables do not know it."""
        fact = self.lookup.get((hop.then.id, bridge))
        return fact.object if fact else None


class _RelationForms(BaseModel):
    """A relation's prompts in a table's YAML file."""

    statements: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    held_out: tuple[str, ...]
    reverse: tuple[str, ...] = ()


class _TableForms(BaseModel):
    """A table's YAML file."""

    language: Literal["en", "zh"] = "en"
    relations: dict[str, _RelationForms]


class _HopForms(BaseModel):
    """An item of hops.yaml; `first` and `then` are ids of relations."""

    first: str
    then: str
    forms: tuple[str, ...]
    held_out: tuple[str, ...]


def _forms(texts: tuple[str, ...], kind: Literal["statement", "question"]) -> tuple[Form, ...]:
    return tuple(Form(text, kind) for text in texts)


def _guess(texts: tuple[str, ...]) -> tuple[Form, ...]:
    """Held-out, reverse and hop forms are listed together; a question ends in a question mark."""
    return tuple(Form(text, "question" if text.rstrip()[-1:] in "?？" else "statement") for text in texts)


def _read_table(path: Path, subjects: list[Subject], relations: dict[str, Relation], problems: list[str]) -> None:
    forms_path = path.with_suffix(".yaml")
    if not forms_path.exists():
        problems.append(f"{path.name}: expected its forms in {forms_path.name}")
        return
    described = _described(forms_path, _TableForms, problems)
    if described is None:
        return
    table = path.stem
    own: dict[str, Relation] = {}
    for name, forms in described.relations.items():
        trained = _forms(forms.statements, "statement") + _forms(forms.questions, "question")
        own[name] = Relation(name, table, described.language, trained, _guess(forms.held_out), _guess(forms.reverse))
        slots = [(form, "{s}") for form in own[name].trained + own[name].held_out]
        slots += [(form, "{o}") for form in own[name].reverse]
        problems += [
            f"{forms_path.name}: {name}: expected {s} once in {f.text!r}" for f, s in slots if f.text.count(s) != 1
        ]
    relations.update({relation.id: relation for relation in own.values()})
    for row in _rows(path, problems):
        aliases = tuple(alias for alias in (row["aliases"] or "").split("|") if alias)
        subject = Subject(row["subject"], aliases, table)
        for name, relation in own.items():
            if row.get(name):
                subject.facts[name] = Fact(subject, relation, row[name])
        subjects.append(subject)


def _rows(path: Path, problems: list[str]) -> list[dict[str, str]]:
    """A table's rows that have a subject; if it is not a valid table, no rows and a problem."""
    try:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = [row for row in table if row.get("subject")]
    except NotUTF8 as error:
        problems.append(f"{path.name}: {error.problem}")
        return []
    except csv.Error as error:
        problems.append(f"{path.name}: not a table of comma-separated values: {error}")
        return []
    if missing := {"subject", "aliases"} - set(table.fieldnames or ()):
        problems.append(
            f"{path.name}: expected columns subject, aliases and the relations'; missing: {', '.join(sorted(missing))}"
        )
        return []
    return rows


def _read_hops(path: Path, relations: dict[str, Relation], problems: list[str]) -> tuple[Hop, ...]:
    if not path.exists():
        return ()
    hops = []
    for item in _described(path, tuple[_HopForms, ...], problems) or ():
        missing = [relation for relation in (item.first, item.then) if relation not in relations]
        if missing:
            problems.append(f"{path.name}: no such relation: {', '.join(missing)}")
            continue
        hops.append(Hop(relations[item.first], relations[item.then], _guess(item.forms), _guess(item.held_out)))
    return tuple(hops)


def _described(path: Path, kind: type[T], problems: list[str]) -> T | None:
    """Parse a YAML file as `kind`; if it is invalid, None and its problems."""
    try:
        document = YamlDocument.parse(read_text(path))
        problems += [f"{path.name}: {problem}" for problem in document.given_twice]
        return TypeAdapter(kind).validate_python(document.data)
    except ValidationError as error:
        problems += [f"{path.name}: {problem}" for problem in problems_of(error)]
    except NotUTF8 as error:
        problems.append(f"{path.name}: {error.problem}")
    except NotYaml as error:
        problems.append(f"{path.name}: {error}")
    return None
