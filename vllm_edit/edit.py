"""Edits and their probes: the facts that a patch changes, and the prompts that test them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from vllm_edit.declared import Declared
from vllm_edit.errors import EditError
from vllm_edit.instant import Instant
from vllm_edit.text.matching import normalise, replaced
from vllm_edit.text.quoting import quoted
from vllm_edit.text.spelling import written

ProbeKind = Literal["paraphrase", "reverse", "portability", "locality", "locality_subject", "unrelated"]
Split = Literal["tune", "gate"]
LOCALITY_KINDS: tuple[ProbeKind, ...] = ("locality", "locality_subject", "unrelated")
_NUMBER = re.compile(r"\s*[-+]?[\d_.]+(e[-+]?\d+)?\s*", re.IGNORECASE)


def _no_empty_name(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(names):
        raise ValueError("an alias is empty")
    return names


Names = Annotated[tuple[str, ...], AfterValidator(_no_empty_name)]
"""Other names of one thing; none is empty."""


class Probe(Declared):
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


class Edit(Declared):
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
    valid_until: Instant | None = None
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
        ways = [("prompt", template_of(self.prompt, self.subject))]
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

    def shares_subject_with(self, other: Edit) -> bool:
        """True if the subject of one edit is a name of the other's. A common alias is not enough: "the Group" may be
        two companies.

        Args:
            other: the edit to compare with.
        """
        return written(self.subject).folded in other.names() or written(other.subject).folded in self.names()

    def joined(self, other: Edit) -> Edit:
        """The edit with all that another edit declares about the same fact: its names, answers and probes, its prompt
        as a paraphrase probe, and the earlier end. If both have a relation, this edit's stays.

        Args:
            other: an edit of the same fact with the same new answer.

        Raises:
            EditError: an answer is new in one edit and the base's in the other.
        """
        new = _united(self.new_answers, other.new_answers, normalise)
        old = _united(self.old_answers, other.old_answers, normalise)
        if both := sorted({normalise(answer) for answer in old} & {normalise(answer) for answer in new}):
            raise EditError(
                f"{quoted(self.prompt)} and {quoted(other.prompt)} change one fact, but {both[0]!r} is a new answer of "
                "one and the current answer of the other; correct one of the two patches"
            )
        names, others = (self.subject, *self.aliases), (other.subject, *other.aliases)
        asked = {normalise(prompt) for prompt in (self.prompt, *(p.prompt for p in (*self.probes, *other.probes)))}
        also = () if normalise(other.prompt) in asked else (Probe(kind="paraphrase", prompt=other.prompt),)
        ends = [end for end in (self.valid_until, other.valid_until) if end is not None]
        return self.model_copy(
            update={
                "relation": self.relation or other.relation,
                "aliases": _united(names, others, lambda name: written(name).folded)[1:],
                "target_new_aliases": new[1:],
                "target_true": old[0] if old else None,
                "target_true_aliases": old[1:],
                "probes": tuple(dict.fromkeys((*self.probes, *also, *other.probes))),
                "valid_until": min(ends, default=None),
            }
        )

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
            raise ValueError(lacks_subject(self.subject, self.prompt))
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


def template_of(prompt: str, subject: str) -> str:
    """The prompt with {} in place of the subject, in one spelling: one template asks about one relation."""
    return normalise(replaced(prompt, subject, "{}"))


def _united(names: Sequence[str], others: Sequence[str], spelling: Callable[[str], str]) -> tuple[str, ...]:
    """The names, and the others that are none of them in another spelling."""
    known = set(map(spelling, names))
    return (*names, *(other for other in others if spelling(other) not in known))


def lacks_subject(subject: str, prompt: str) -> str:
    """The message for a prompt that does not have the subject, or has it only within a longer word."""
    if subject in prompt:
        return (
            f"the prompt has the subject {subject!r} only within a longer word; it is {quoted(prompt)}: name the "
            "subject as the prompt does"
        )
    return f"the prompt must contain the subject {subject!r}; it is {quoted(prompt)}"
