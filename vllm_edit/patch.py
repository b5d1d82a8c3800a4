"""Patches: what a person declares, reviews and versions.

A patch is a YAML file under `patches/`. Reading a bad one raises `PatchError` with every problem at once, each with
its line and field.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails

from vllm_edit.declared import Declared
from vllm_edit.edit import Edit, lacks_subject
from vllm_edit.edit_problems import contradictions, problems_of_edits
from vllm_edit.errors import PatchError
from vllm_edit.invalid import message_of
from vllm_edit.text.json_document import JsonDocument
from vllm_edit.text.matching import occurrences
from vllm_edit.text.quoting import quoted
from vllm_edit.text.utf8 import NotUTF8, read_text
from vllm_edit.text.yaml_document import Location, NotYaml, YamlDocument, dump_yaml, field

Scope = Literal["subject", "all"]
_LONGEST_NUMBER = 256
"""Maximum size, in bits, of numbers that a message shows."""
SUFFIXES = (".yaml", ".yml")
"""Suffixes of patch files, in any letter case."""
_A_FILE = "a file"
"""Context of the validation of a file: what a person declares has more rules than a record of a data set."""
Document = YamlDocument | JsonDocument
"""The parsed content of a patch file."""


class Gate(Declared):
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


class Patch(Declared):
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
        problems = [*problems_of_edits(self.edits, searched=self.scope == "subject")]
        if info.context == _A_FILE:
            problems += contradictions(self.edits)
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
            problems.append(f"{where}edits.{number}: {lacks_subject(subject.strip(), prompt)}")
    return problems


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
