"""When two edits are about one fact: the same subject, by its name or an alias, and the same relation."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_edit.patch import Edit
from vllm_edit.text import normalise, occurrences

Fact = tuple[str, str, str]
"""(name of the subject, "relation" or "prompt", the relation, or the prompt without its subject), normalised."""


def names_of(edit: Edit) -> frozenset[str]:
    """What its subject is called, normalised."""
    return frozenset(normalise(name) for name in (edit.subject, *edit.aliases))


def subjects_of(edits: Sequence[Edit]) -> str:
    """The subjects of some edits, for people."""
    return " / ".join(dict.fromkeys(edit.subject for edit in edits))


def facts_of(edit: Edit) -> frozenset[Fact]:
    """All ways to write the edit's fact; two edits are about one fact if they have one in common.

    An edit without a relation is known by its prompt, one with a relation by both.
    """
    ways = [("prompt", normalise(_without_subject(edit)))]
    if edit.relation:
        ways.append(("relation", edit.relation))
    return frozenset((name, *way) for name in names_of(edit) for way in ways)


def same_target(one: Edit, other: Edit) -> bool:
    return normalise(one.target_new) == normalise(other.target_new)


def _without_subject(edit: Edit) -> str:
    """The prompt with `{}` for every occurrence of its subject as a whole word."""
    parts, reached = [], 0
    for start in occurrences(edit.prompt, edit.subject):
        if start >= reached:
            parts.append(edit.prompt[reached:start])
            reached = start + len(edit.subject)
    return "{}".join([*parts, edit.prompt[reached:]])
