"""The bank: facts known to a base model, the source of IKE demonstrations. It never holds facts that are scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from vllm_edit.edit import Edit, template_of
from vllm_edit.errors import EditError
from vllm_edit.invalid import message_of, problems_of
from vllm_edit.json_value import JSONValue
from vllm_edit.patch import Patch
from vllm_edit.text.matching import is_said, normalise
from vllm_edit.text.utf8 import read_text
from vllm_edit.text.yaml_document import YamlDocument, field


class Fact(BaseModel):
    """A fact the base knows: `prompt` ends right before `object`; `paraphrases` ask for the same object.

    An empty relation becomes the prompt with {} for the subject: without one, all such facts would be of one relation.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True)

    prompt: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    relation: str
    object: str = Field(min_length=1)
    paraphrases: tuple[str, ...] = ()

    @field_validator("relation")
    @classmethod
    def _or_the_prompt(cls, relation: str, info: ValidationInfo) -> str:
        known = info.data  # without the fields that are not valid
        return relation or template_of(known.get("prompt", ""), known.get("subject", ""))


class Bank(BaseModel):
    """Facts that a base model knows, for the demonstrations of IKE."""

    model_config = ConfigDict(frozen=True)

    facts: tuple[Fact, ...] = ()
    """Facts with the same `relation` must allow each other's objects as answers."""

    @classmethod
    def from_records(cls, records: Iterable[Fact | Mapping[str, JSONValue]]) -> Bank:
        """A bank from facts or plain values.

        Args:
            records: facts, or mappings with prompt, subject, relation, object and optionally paraphrases.

        Raises:
            EditError: a record is not such a mapping; the message names the first.
        """
        facts = []
        for number, record in enumerate(records):
            try:
                facts.append(Fact.model_validate(dict(record)))
            except ValidationError as error:
                raise EditError(f"bank record {number}: {problems_of(error, 'the record')[0]}") from None
        return cls(facts=tuple(facts))

    @classmethod
    def load(cls, path: str | Path) -> Bank:
        """A bank from a YAML file.

        Args:
            path: a list of records (see `from_records`), or a patch file (see `from_patch`).

        Raises:
            EditError: the file cannot be read, is neither, or has no fact; one line for each bad field of a record.
        """
        path = Path(path)
        try:
            document = YamlDocument.parse(read_text(path))
        except (OSError, ValueError) as error:
            raise EditError(f"{path}: expected a bank in YAML: {error}") from None
        if document.given_twice:
            raise EditError("\n".join(f"{path}: {problem}" for problem in document.given_twice))
        data = document.data
        bank = cls(facts=_facts(path, document, data)) if isinstance(data, list) else cls.from_patch(Patch.load(path))
        if not bank.facts:
            raise EditError(
                f"{path}: it has no fact; expected a list of records with prompt, subject, relation and object, or a "
                "patch with target_true"
            )
        return bank

    @classmethod
    def from_patch(cls, patch: Patch) -> Bank:
        """The true facts that a patch would change.

        Edits without a relation count as one relation if their prompts differ only in the subject.

        Args:
            patch: its edits without `target_true` are left out.
        """
        return cls(
            facts=tuple(
                Fact(
                    prompt=edit.prompt,
                    subject=edit.subject,
                    relation=edit.relation,
                    object=edit.target_true,
                    paraphrases=tuple(probe.prompt for probe in edit.probes_of("paraphrase") if not probe.chat),
                )
                for edit in patch.edits
                if edit.target_true
            )
        )

    def without(self, edits: Sequence[Edit]) -> Bank:
        """The bank without facts that could affect a scored prompt of these edits.

        A fact is removed if an edit's prompt or a probe mentions its subject, or if its own text mentions an edited
        subject or alias. Letter case and articles are ignored here.

        Args:
            edits: the edits whose prompts and probes are scored.
        """
        scored = "\n".join(
            normalise(text) for edit in edits for text in (edit.prompt, *(p.prompt for p in edit.probes))
        )
        names = {normalise(name): name for edit in edits for name in (edit.subject, *edit.aliases)}
        chosen = []
        for fact in self.facts:
            text = normalise(" ".join((fact.prompt, *fact.paraphrases, fact.object)))
            # The substring test is a fast filter; `is_said` decides at word boundaries.
            edited = any(short in text and is_said(text, name) for short, name in names.items())
            probed = normalise(fact.subject) in scored and is_said(scored, fact.subject)
            if not edited and not probed:
                chosen.append(fact)
        return Bank(facts=tuple(chosen))

    @cached_property
    def by_relation(self) -> dict[str, tuple[Fact, ...]]:
        """Relation → its facts."""
        return _grouped(self.facts, "relation")

    @cached_property
    def by_subject(self) -> dict[str, tuple[Fact, ...]]:
        """Subject → its facts."""
        return _grouped(self.facts, "subject")


def _facts(path: Path, document: YamlDocument, records: Sequence[object]) -> tuple[Fact, ...]:
    """The facts of a file, which has no other fields; raise `EditError` with all its problems."""
    facts, problems = list[Fact](), list[str]()
    for number, record in enumerate(records):
        try:
            facts.append(Fact.model_validate(record, extra="forbid"))
        except ValidationError as error:
            for problem in error.errors():
                at = (number, *problem["loc"])
                problems.append(f"{path}: {document.place(at)}{field(at)}: {message_of(problem)}")
    if problems:
        raise EditError("\n".join(problems))
    return tuple(facts)


def _grouped(facts: Sequence[Fact], by: str) -> dict[str, tuple[Fact, ...]]:
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(getattr(fact, by), []).append(fact)
    return {key: tuple(group) for key, group in groups.items()}
