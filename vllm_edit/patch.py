"""Edits, probes and patches: what a person declares, reviews and versions.

A patch is a YAML file under `patches/`. Reading a bad one raises `PatchError` with every problem at once, each with
its line and field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from vllm_edit.errors import PatchError
from vllm_edit.text import quoted

ProbeKind = Literal["paraphrase", "reverse", "portability", "locality", "locality_subject", "unrelated"]
Split = Literal["tune", "gate"]
Scope = Literal["subject", "all"]
LOCALITY_KINDS: tuple[ProbeKind, ...] = ("locality", "locality_subject", "unrelated")


class _Declared(BaseModel):
    """What a file declares. Fields named in `_ADDED` came later; they are not written where they have their default.

    Names of compiled patches are digests of what is written, and must not change with a new field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
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


Names = Annotated[tuple[str, ...], AfterValidator(_no_empty_name)]
"""Other names of one thing; none is empty."""


class Probe(_Declared):
    """A prompt that tests an edit.

    `target` is the expected answer: for `paraphrase` it defaults to the edit's `target_new`; for the locality kinds it
    is the true answer (optional: without it only "unchanged from base" is measured). Any of `target_aliases` counts as
    it does. `chat` asks the prompt as a chat turn. A `tune` probe may be used to choose layer, damping and keys; a
    `gate` probe only to judge the result. `tag` is a free label (`held_out`, `alias`, `one_hop`, ...) that reports
    break their numbers down by.
    """

    kind: ProbeKind
    prompt: str = Field(min_length=1)
    target: str | None = None
    chat: bool = False
    split: Split = "gate"
    tag: str = ""
    target_aliases: Names = ()

    _ADDED = ("target_aliases",)

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


class Edit(_Declared):
    """One fact to change. `prompt` is literal text that contains `subject` and ends right before the answer."""

    prompt: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    relation: str = ""
    target_new: str = Field(min_length=1)
    target_true: str | None = None
    aliases: Names = ()
    probes: tuple[Probe, ...] = ()
    valid_until: AwareDatetime | None = Field(None, description="when the fact stops to hold: a time with its zone")
    target_new_aliases: Names = Field((), description="other answers that count as target_new")
    target_true_aliases: Names = Field((), description="other answers that count as target_true")

    _ADDED = ("valid_until", "target_new_aliases", "target_true_aliases")

    @property
    def new_answers(self) -> tuple[str, ...]:
        """`target_new` and its aliases."""
        return (self.target_new, *self.target_new_aliases)

    @property
    def old_answers(self) -> tuple[str, ...]:
        """`target_true` and its aliases; empty without one."""
        return (self.target_true, *self.target_true_aliases) if self.target_true else ()

    @model_validator(mode="after")
    def _changes_its_prompt(self) -> Edit:
        if self.subject not in self.prompt:
            raise ValueError(_lacks_subject(self.subject, self.prompt))
        if self.target_true_aliases and not self.target_true:
            raise ValueError("target_true_aliases are other names of target_true: an edit with them needs one")
        if self.target_true is not None and self.target_true == self.target_new:
            raise ValueError(f"target_new equals target_true ({quoted(self.target_new)}): nothing to change")
        return self

    def probes_of(self, kind: ProbeKind, split: Split | None = None) -> list[Probe]:
        return [probe for probe in self.probes if probe.kind == kind and split in (None, probe.split)]


class Gate(_Declared):
    """What a compiled patch must reach before it may be published: the least shares on its gate probes, between 0 and
    1, and the most that it may do to ordinary text."""

    reliability: float = Field(1.0, ge=0, le=1)
    paraphrase: float = Field(0.0, ge=0, le=1)
    reverse: float = Field(0.0, ge=0, le=1)
    portability: float = Field(0.0, ge=0, le=1)
    locality: float = Field(0.9, ge=0, le=1)
    locality_subject: float = Field(0.0, ge=0, le=1)
    unrelated: float = Field(0.9, ge=0, le=1)
    perplexity_drift: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="the most by which perplexity of the store's passages may grow: 0.02 is 2 %; without it, no limit",
    )

    _ADDED = ("perplexity_drift",)

    def shares(self) -> dict[str, float]:
        """Metric → the least share."""
        return self.model_dump(exclude={"perplexity_drift"})


class Patch(_Declared):
    """A named set of edits for one base model; without `base`, for whichever one it is compiled for."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    description: str = ""
    base: str | None = Field(None, description="the model it was written for, as `store init --model` named it")
    scope: Scope = Field(
        "all",
        description="all: every request gets all edits, which must fit the site's rank. subject: a request gets the "
        "edits of the subjects that its text mentions, so that there may be thousands",
    )
    gate: Gate = Gate()
    edits: tuple[Edit, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_contradiction(self) -> Patch:
        seen: dict[tuple[str, str], Edit] = {}
        for edit in self.edits:
            earlier = seen.setdefault((edit.subject, edit.relation or edit.prompt), edit)
            if earlier is not edit:
                how = "twice" if earlier.target_new == edit.target_new else "to two different targets"
                raise ValueError(f"subject {edit.subject!r}, relation {edit.relation or edit.prompt!r} is edited {how}")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch from YAML. Raises `PatchError` listing every problem with line and field."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise PatchError(str(path), ["no such file; expected the path of a patch in YAML"]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise PatchError(str(path), [f"cannot be read as UTF-8 text: {error}"]) from None
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, source: str = "<text>") -> Patch:
        """Like `load`, from a string; `source` names it in the messages."""
        try:
            tree = yaml.compose(text, Loader=yaml.SafeLoader)
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}: " if mark else ""
            raise PatchError(source, [f"{where}not valid YAML: {getattr(error, 'problem', error)}"]) from None
        if not isinstance(data, dict):
            raise PatchError(source, ["line 1: expected a mapping with name, edits, ..."])
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            found = error.errors()
            inner = {problem["loc"][:depth] for problem in found for depth in range(1, len(problem["loc"]))}
            # A list whose items are all invalid is also reported as too short: only its items' problems help.
            told = [p for p in found if not (p["type"] == "too_short" and p["loc"] in inner)]
            raise PatchError(
                source, [_describe(problem, tree) for problem in told] + _unseen(data, told, tree)
            ) from None

    def dump(self) -> str:
        """The patch as YAML; `Patch.parse(patch.dump()) == patch`."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=120)


def _unseen(data: dict[str, Any], told: list[Any], tree: yaml.Node | None) -> list[str]:
    """Edits whose prompt lacks the subject: pydantic compares fields only where all of an edit's fields are valid."""
    edits = data.get("edits")
    problems = []
    for number, edit in enumerate(edits if isinstance(edits, list) else []):
        known = any(problem["loc"] == ("edits", number) for problem in told)
        prompt, subject = (edit.get("prompt"), edit.get("subject")) if isinstance(edit, dict) else (None, None)
        if not known and isinstance(prompt, str) and isinstance(subject, str) and subject not in prompt:
            where = _line(("edits", number, "prompt"), tree)
            problems.append(f"line {where}: edits.{number}: {_lacks_subject(subject, prompt)}")
    return problems


def _lacks_subject(subject: str, prompt: str) -> str:
    return f"the prompt must contain the subject {subject!r}; it is {quoted(prompt)}"


def _describe(problem: Any, tree: yaml.Node | None) -> str:
    """One line: where, which field, what was expected, what came."""
    location = problem["loc"]
    field = ".".join(str(part) for part in location) or "patch"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem.get("input")
    got = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"line {_line(location, tree)}: {field}: {message}{got}"


def _line(location: tuple[int | str, ...], tree: yaml.Node | None) -> int:
    """The line of the deepest node on the path `location` that is present in the file."""
    node = tree
    line = node.start_mark.line + 1 if node is not None else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
