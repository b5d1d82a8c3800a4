"""Edits, probes and patches: what a person declares, reviews and versions.

A patch is a YAML file under `patches/`. Reading a bad one raises `PatchError` with every problem at once, each with
its line and field.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from vllm_edit.errors import PatchError
from vllm_edit.invalid import message_of
from vllm_edit.text.json_document import JsonDocument
from vllm_edit.text.matching import is_whole, normalise, occurrences, replaced
from vllm_edit.text.quoting import quoted
from vllm_edit.text.spelling import Name, written
from vllm_edit.text.utf8 import NotUTF8, read_text
from vllm_edit.text.yaml_document import Location, NotYaml, YamlDocument, dump_yaml, field

ProbeKind = Literal["paraphrase", "reverse", "portability", "locality", "locality_subject", "unrelated"]
Split = Literal["tune", "gate"]
Scope = Literal["subject", "all"]
_LONGEST_NUMBER = 256
"""Maximum size, in bits, of numbers that a message shows."""
LOCALITY_KINDS: tuple[ProbeKind, ...] = ("locality", "locality_subject", "unrelated")
SUFFIXES = (".yaml", ".yml")
"""Suffixes of patch files, in any letter case."""
_PLACEHOLDERS = ("{}", "{subject}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ENDS = " .。"
"""What may follow an answer that ends a sentence. A question may end with one of its answers."""
_A_FILE = "a file"
"""Context of the validation of a file: what a person declares has more rules than a record of a data set."""
_NUMBER = re.compile(r"\s*[-+]?[\d_.]+(e[-+]?\d+)?\s*", re.IGNORECASE)


class _Declared(BaseModel):
    """Base of what a file declares. Fields in `_ADDED` are newer; they are not written if they have their default.

    Names of compiled patches are digests of the written form, and must not change with a new field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, use_attribute_docstrings=True)
    _ADDED: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for name in self._ADDED:
            if getattr(self, name) == type(self).model_fields[name].default:
                data.pop(name, None)
        return data


def _no_empty_name(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(names):
        raise ValueError("an alias is empty")
    return names


Document = YamlDocument | JsonDocument
"""The parsed content of a patch file."""
Names = Annotated[tuple[str, ...], AfterValidator(_no_empty_name)]
"""Other names of one thing; none is empty."""


class Probe(_Declared):
    """A prompt that tests an edit."""

    kind: ProbeKind
    """The answers to paraphrase, reverse and portability probes must change; those to locality, locality_subject and
    unrelated probes must not."""
    prompt: str = Field(min_length=1)
    """The text to ask."""
    target: str | None = None
    """The expected answer. A paraphrase defaults to the edit's `target_new`. For the locality kinds it is the true
    answer; without it only "unchanged from base" is measured."""
    chat: bool = False
    """Ask the prompt as a chat turn."""
    split: Split = "gate"
    """tune: layer, damping and keys may depend on the probe. gate: only the gate and reports use it."""
    tag: str = ""
    """A free label (`held_out`, `alias`, `one_hop`) by which reports break their numbers down."""
    target_aliases: Names = ()
    """Other answers that count as `target`."""

    _ADDED = ("target_aliases",)

    @property
    def keeps(self) -> bool:
        """True if the answer must stay that of the base model."""
        return self.kind in LOCALITY_KINDS

    @property
    def answers(self) -> tuple[str, ...]:
        """The target and its aliases; empty without a target."""
        return (self.target, *self.target_aliases) if self.target else ()

    @model_validator(mode="after")
    def _needs_target(self) -> Probe:
        if self.target_aliases and not self.target:
            raise ValueError("target_aliases are other names of the target: a probe with aliases needs a target")
        if self.kind in ("reverse", "portability") and not self.target:
            raise ValueError(f"a {self.kind} probe needs a target: the answer expected after the edit")
        return self


Fact = tuple[str, str, str]
"""One way to write a fact, in one spelling: (a name of the subject, "relation", the relation), (a name of the subject,
"prompt", the prompt without the subject), or ("", "prompt", the whole prompt). The last form has no name, because a
prompt has one answer, whichever subject the edit names."""


class Edit(_Declared):
    """A fact to change."""

    prompt: str = Field(min_length=1)
    """Literal text that contains `subject` and ends right before the answer."""
    subject: str = Field(min_length=1)
    """The entity that the fact is about, as it is written in `prompt`."""
    relation: str = ""
    """A label such as `countries.capital`. Edits with one subject and one relation are about the same fact."""
    target_new: str = Field(min_length=1)
    """The new answer."""
    target_true: str | None = None
    """The base's answer."""
    aliases: Names = ()
    """Other names of the subject."""
    probes: tuple[Probe, ...] = ()
    """Prompts that test the edit."""
    valid_until: AwareDatetime | None = None
    """The time, with its zone, from which the fact no longer holds."""
    target_new_aliases: Names = ()
    """Other answers that count as `target_new`."""
    target_true_aliases: Names = ()
    """Other answers that count as `target_true`."""

    _ADDED = ("valid_until", "target_new_aliases", "target_true_aliases")

    @property
    def new_answers(self) -> tuple[str, ...]:
        """`target_new` and its aliases."""
        return (self.target_new, *self.target_new_aliases)

    @property
    def old_answers(self) -> tuple[str, ...]:
        """`target_true` and its aliases; empty without one."""
        return (self.target_true, *self.target_true_aliases) if self.target_true else ()

    def names(self) -> frozenset[str]:
        """The subject's names, in one spelling."""
        return frozenset(written(name).folded for name in (self.subject, *self.aliases))

    def facts(self) -> frozenset[Fact]:
        """All ways to write the edit's fact. Two edits are about the same fact if they share a way.

        An edit without a relation is known by its prompt, an edit with a relation by both.
        """
        ways = [("prompt", normalise(replaced(self.prompt, self.subject, "{}")))]
        if self.relation:
            ways.append(("relation", self.relation))
        return frozenset(
            [("", "prompt", normalise(self.prompt)), *((name, *way) for name in self.names() for way in ways)]
        )

    def agrees_with(self, other: Edit) -> bool:
        """True if both edits have the same new answer.

        Args:
            other: the edit to compare with. Letter case and punctuation around the answer do not count.
        """
        return normalise(self.target_new) == normalise(other.target_new)

    @field_validator("valid_until", mode="before")
    @classmethod
    def _is_no_number(cls, value: object) -> object:
        """Refuse numbers: pydantic would read 2030 as that many seconds since 1970."""
        if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
            raise ValueError("expected a time with its zone, like 2030-01-31T00:00:00Z, and no number")
        return value

    @model_validator(mode="after")
    def _changes_its_prompt(self) -> Edit:
        if self.subject not in self.prompt:
            raise ValueError(_lacks_subject(self.subject, self.prompt))
        if self.target_true_aliases and not self.target_true:
            raise ValueError("target_true_aliases are other names of target_true: an edit with them needs one")
        if normalise(self.target_new) in map(normalise, self.old_answers):
            raise ValueError(f"target_new equals target_true ({quoted(self.target_new)}): nothing to change")
        return self

    def probes_of(self, kind: ProbeKind, split: Split | None = None) -> list[Probe]:
        """The edit's probes of one kind.

        Args:
            kind: the kind of the probes.
            split: only probes of this split; None for both.
        """
        return [probe for probe in self.probes if probe.kind == kind and split in (None, probe.split)]


class Gate(_Declared):
    """Conditions for publishing a compiled patch: minimum shares on its gate probes, between 0 and 1, and the maximum
    perplexity drift on ordinary text. Free generation decides."""

    reliability: float = Field(1.0, ge=0, le=1)
    """Share of the edits whose prompt gives `target_new`."""
    paraphrase: float = Field(0.0, ge=0, le=1)
    """Share of the paraphrases that give the answer."""
    reverse: float = Field(0.0, ge=0, le=1)
    """Share of the reverse probes that give their answer."""
    portability: float = Field(0.0, ge=0, le=1)
    """Share of the portability probes that give their answer."""
    locality: float = Field(0.9, ge=0, le=1)
    """Share of the answers about other subjects that are unchanged from base."""
    locality_subject: float = Field(0.0, ge=0, le=1)
    """Share of the answers about other relations of the subject that are unchanged from base."""
    unrelated: float = Field(0.9, ge=0, le=1)
    """Share of the other answers that are unchanged from base."""
    perplexity_drift: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Maximum relative growth of the perplexity of the store's passages: 0.02 is 2 %; None for no limit."""

    _ADDED = ("perplexity_drift",)

    def shares(self) -> dict[str, float]:
        """Metric → minimum share."""
        return self.model_dump(exclude={"perplexity_drift"})


class Patch(_Declared):
    """A named set of edits."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """The patch's name; the name of its compiled form is `<name>@<digest>`."""
    description: str = ""
    """A note for readers."""
    base: str | None = None
    """The model for which the patch was written, as `store init --model` named it; None for any model."""
    scope: Scope = "all"
    """all: every request gets all edits, which must fit the site's rank. subject: a request gets the edits of the
    subjects that its text mentions, so that there may be thousands."""
    gate: Gate = Gate()
    """Conditions for publishing the compiled patch."""
    edits: tuple[Edit, ...] = Field(min_length=1)
    """The facts to change."""

    @model_validator(mode="after")
    def _edits_fit(self, info: ValidationInfo) -> Patch:
        names_nothing = _names_nothing(self.edits, self.scope)
        problems = [*_within_words(self.edits), *_edited_twice(self.edits), *_not_judged(self.edits), *names_nothing]
        if info.context == _A_FILE:
            problems += _contradictory(self.edits)
        if problems:
            raise _Unfit(sorted(problems))
        return self

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch from a YAML file.

        Args:
            path: the file.

        Raises:
            PatchError: the file cannot be read, or is no patch; the message lists every problem with line and field.
        """
        path = Path(path)
        try:
            text = read_text(path)
        except FileNotFoundError:
            raise PatchError(str(path), ["no such file; expected the path of a patch in YAML"]) from None
        except OSError as error:
            raise PatchError(str(path), [f"cannot be read: {error.strerror or error}"]) from None
        except ValueError as error:  # not a valid path
            raise PatchError(str(path), [f"cannot be read: {error}"]) from None
        except NotUTF8 as error:
            raise PatchError(str(path), [error.problem]) from None
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, source: str = "<text>") -> Patch:
        """Read a patch from YAML text.

        Args:
            text: the content of a patch file.
            source: the name of the text in messages.

        Raises:
            PatchError: the text is no patch; the message lists every problem with line and field.

        Example:
            >>> patch = Patch.parse('''
            ... name: capital
            ... edits:
            ...   - {prompt: The capital of France is, subject: France, target_new: Lyon}
            ... ''')
            >>> patch.edits[0].target_new
            'Lyon'
        """
        try:
            document = YamlDocument.parse(text)
        except NotYaml as error:
            raise PatchError(source, [str(error)]) from None
        return cls.of_document(document, source)

    @classmethod
    def of_document(cls, document: Document, source: str = "<text>", most_problems: int | None = None) -> Patch:
        """Read a patch from a parsed document.

        Args:
            document: the content of a patch file, in YAML or JSON.
            source: the name of the document in messages.
            most_problems: maximum number of invalid fields that are located; None for all.

        Raises:
            PatchError: the document is no patch; the message lists every problem with its field, and its line in YAML.
        """
        if not isinstance(document.data, dict):
            raise PatchError(source, [f"{document.place(())}expected a mapping with name, edits, ..."])
        twice = list(document.given_twice)
        try:
            patch = cls.model_validate(document.data, context=_A_FILE)
        except ValidationError as error:
            raise PatchError(source, [*twice, *_problems(error, document, most_problems)]) from None
        if twice:
            raise PatchError(source, twice)
        return patch

    def ended(self, now: datetime) -> list[str]:
        """One line for each edit that no longer holds, so that the compiled patch could not be published.

        Args:
            now: the time to compare with.
        """
        return [
            f"edits.{number}.valid_until: {edit.valid_until.isoformat()} is past, so the patch could not be published; "
            "give a later time, or remove the edit"
            for number, edit in enumerate(self.edits)
            if edit.valid_until is not None and edit.valid_until <= now
        ]

    def dump(self) -> str:
        """The patch as YAML; `Patch.parse(patch.dump()) == patch`."""
        return dump_yaml(self.model_dump(mode="json", exclude_defaults=True))


def is_patch_file(name: str | Path) -> bool:
    """True if a file of this name is read as a patch."""
    return Path(name).suffix.lower() in SUFFIXES


class _Unfit(ValueError):
    """Edits that are each valid but cannot be in one patch; `problems` holds their indices and the reasons."""

    def __init__(self, problems: Sequence[tuple[int, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"edits.{number}: {problem}" for number, problem in problems))


def _within_words(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Edits whose subject would be found only within a longer word."""
    for number, edit in enumerate(edits):
        if not occurrences(edit.prompt, edit.subject):
            yield number, _lacks_subject(edit.subject, edit.prompt)


def _not_judged(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Edits with an answer that no text can give, or with an answer that is both new and old."""
    for number, edit in enumerate(edits):
        probed = (answer for probe in edit.probes for answer in probe.answers)
        for answer in (*edit.new_answers, *edit.old_answers, *probed):
            if not normalise(answer):
                yield (
                    number,
                    f"the answer {answer!r} is punctuation alone, or invisible, so no text can give it",
                )
        old = {normalise(answer): answer for answer in edit.old_answers}
        for alias in edit.target_new_aliases:
            if other := old.get(normalise(alias)):
                yield (
                    number,
                    f"{alias!r} of target_new_aliases is also the current answer ({other!r}): remove one of the two",
                )


def _names_nothing(edits: Sequence[Edit], scope: Scope) -> Iterator[tuple[int, str]]:
    """Edits with a name that no text can mention. Punctuation may be a name only if mentions do not matter."""
    for number, edit in enumerate(edits):
        for name in (edit.subject, *edit.aliases):
            if not (Name.of(name) if scope == "subject" else written(name)).folded.strip():
                yield number, f"no text can mention the name {name!r}, which is punctuation alone or invisible"


def _edited_twice(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Edits of a fact that an earlier edit also changes, in any spelling and by any name.

    Two subjects may share an alias if their edits have the same answer.
    """
    seen: dict[Fact, int] = {}
    for number, edit in enumerate(edits):
        owners = {seen.setdefault(fact, number) for fact in edit.facts()} - {number}
        for earlier in sorted(owners):
            other = edits[earlier]
            agrees = edit.agrees_with(other)
            named = written(edit.subject).folded in other.names() or written(other.subject).folded in edit.names()
            if named or not agrees:
                how = "twice" if agrees else f"to two different targets, also to {quoted(other.target_new)}"
                fact = f"subject {edit.subject!r}, relation {edit.relation or edit.prompt!r}"
                yield number, f"{fact} is edited {how} (see edits.{earlier}, of {other.subject!r})"
                break


def _contradictory(edits: Sequence[Edit]) -> Iterator[tuple[int, str]]:
    """Edits that no compiling can satisfy, or that no gate can judge, as a person may declare them by mistake."""
    for number, edit in enumerate(edits):
        for problem in (*_of_texts(edit), *_of_prompt(edit), *_of_probes(edit)):
            yield number, problem


def _of_texts(edit: Edit) -> Iterator[str]:
    texts = [edit.prompt, edit.relation, *edit.aliases, *edit.new_answers, *edit.old_answers]
    texts += [text for probe in edit.probes for text in (probe.prompt, probe.tag, *probe.answers)]
    for text in dict.fromkeys(texts):
        if _CONTROL.search(text):
            yield f"{quoted(text)} has a control character, which no answer or question has; remove it"
    for prompt in (edit.prompt, *(probe.prompt for probe in edit.probes)):
        for placeholder in _PLACEHOLDERS:
            if placeholder in prompt:
                yield f"{placeholder} is not filled in the prompt {quoted(prompt)}; write the subject itself"


def _of_prompt(edit: Edit) -> Iterator[str]:
    text = written(edit.prompt).folded.rstrip(_ENDS)
    for answer in (*edit.new_answers, *edit.old_answers):
        wanted = normalise(answer)
        start = len(text) - len(wanted)
        within_subject = text.endswith(normalise(edit.subject)) and len(wanted) <= len(normalise(edit.subject))
        if wanted and text.endswith(wanted) and is_whole(text, start, len(text)) and not within_subject:
            yield f"the prompt {quoted(edit.prompt)} ends with the answer {answer!r}; end it right before the answer"


def _of_probes(edit: Edit) -> Iterator[str]:
    old = {normalise(answer) for answer in edit.old_answers}
    seen: dict[tuple[str, bool], Probe] = {}
    for number, probe in enumerate(edit.probes):
        asked = normalise(probe.prompt)
        if probe.keeps and asked == normalise(edit.prompt):
            yield f"probes.{number}: a {probe.kind} probe keeps its answer, but asks the prompt that the edit changes"
        if probe.kind == "paraphrase":
            for answer in probe.answers:
                if normalise(answer) in old:
                    yield f"probes.{number}: a paraphrase expects the new answer, and {answer!r} is the old answer"
        earlier = seen.setdefault((asked, probe.chat), probe)
        if earlier.split != probe.split:
            yield (
                f"probes.{number}: {quoted(probe.prompt)} is a probe of both tune and gate, so the gate would measure "
                "what was trained; keep one of the two"
            )


def _problems(error: ValidationError, document: Document, most: int | None) -> list[str]:
    """One line for each problem of the document, or for the first `most` and all edits without their subject."""
    found = error.errors()
    inner = {problem["loc"][:depth] for problem in found for depth in range(1, len(problem["loc"]))}
    lines = []
    for problem in found[:most]:
        unfit = problem.get("ctx", {}).get("error")
        if isinstance(unfit, _Unfit):
            lines += [f"{document.place(('edits', n))}edits.{n}: {why}" for n, why in unfit.problems]
        # A list whose items are all invalid is also reported as too short: only its items' problems help.
        elif not (problem["type"] == "too_short" and problem["loc"] in inner):
            lines.append(_describe(problem, document))
    known = {problem["loc"] for problem in found}
    return lines if () in known else lines + _unseen(document, known)


def _unseen(document: Document, known: Container[Location]) -> list[str]:
    """Edits whose prompt lacks the subject: pydantic compares fields only where all of a patch's fields are valid.

    `known` holds the locations of the reported problems.
    """
    edits = document.data.get("edits") if isinstance(document.data, dict) else None
    problems = []
    for number, edit in enumerate(edits if isinstance(edits, list) else []):
        prompt, subject = (edit.get("prompt"), edit.get("subject")) if isinstance(edit, dict) else (None, None)
        if ("edits", number) in known or not (isinstance(prompt, str) and isinstance(subject, str) and subject.strip()):
            continue
        if not occurrences(prompt, subject.strip()):
            where = document.place(("edits", number, "prompt"))
            problems.append(f"{where}edits.{number}: {_lacks_subject(subject.strip(), prompt)}")
    return problems


def _lacks_subject(subject: str, prompt: str) -> str:
    if subject in prompt:
        return (
            f"the prompt has the subject {subject!r} only within a longer word; it is {quoted(prompt)}: name the "
            "subject as the prompt does"
        )
    return f"the prompt must contain the subject {subject!r}; it is {quoted(prompt)}"


def _describe(problem: ErrorDetails, document: Document) -> str:
    """One line: location, field, expected value, actual value."""
    location = problem["loc"]
    message = message_of(problem).removeprefix("Value error, ")
    if problem["type"] == "string_type" and isinstance(problem.get("input"), bool | int | float | date):
        message += ": put it in quotes, or YAML reads another value"
    got = _shown(problem.get("input"))
    return f"{document.place(location)}{field(location) or 'patch'}: {message}" + (f" (got {got})" if got else "")


def _shown(value: object) -> str:
    """A plain value for a message; empty for other values and for numbers that are too long."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float) or (isinstance(value, int) and value.bit_length() < _LONGEST_NUMBER):
        return repr(value)
    return ""
