"""Values of records. Their kinds differ from set to set, and from record to record: nothing here raises but `NoEdit`.

An answer is a text, a mapping that names it (`{"str": "Lyon", "id": "Q456"}`), or lists of these: one answer by several
names, or several answers that all count. What is missing is null, NaN, blank, or an empty list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_edit.text import normalise, quoted

Record = Mapping[str, Any]
_MOST_DIGITS = 20


class NoEdit(ValueError):
    """A record that is no edit; the message is one line that says why."""


def texts(value: Any) -> tuple[str, ...]:
    """The texts of a value, each once, in their order. A number is none: who has one for an answer is wrong."""
    found, waiting = list[str](), [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            found += filter(None, [one.strip()])
        elif isinstance(one, list):
            waiting += reversed(one)
        elif isinstance(one, dict):
            waiting.append(one.get("str"))
    return tuple(dict.fromkeys(found))


def text_of(record: Record, *names: str) -> str:
    """The text in the first of the fields that the record has.

    Raises:
        NoEdit: it is no text, or blank.
    """
    name, value = _first(record, names)
    if not isinstance(value, str) or not value.strip():
        raise NoEdit(f"{name}: expected text, got {shown(value)}")
    return value.strip()


def answers_of(record: Record, *names: str) -> tuple[str, ...]:
    """The answers in the first of the fields that the record has; at least one.

    Raises:
        NoEdit: there is none, or none with more than punctuation.
    """
    name, value = _first(record, names)
    found = tuple(filter(normalise, texts(value)))
    if not found:
        raise NoEdit(f"{name}: expected an answer, got {shown(value)}")
    return found


def old_answers_of(record: Record, *names: str) -> tuple[str, ...]:
    """The answers in the first of the fields that has some."""
    return next((found for name in names if (found := tuple(filter(normalise, texts(record.get(name)))))), ())


def mapping(value: Any) -> Record:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def asked(value: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Prompts with their answers: of a mapping, of mappings in a list, or of a mapping with a list for each field.

    What is no such mapping, or has no prompt, is passed over.
    """
    for one in map(mapping, value if isinstance(value, list) else [value]):
        prompt = one.get("prompt", one.get("New Question"))
        answers = one.get("ground_truth", one.get("New Answer"))
        if not isinstance(prompt, list):
            pairs = [(prompt, answers)]
        elif len(prompt) == 1:
            pairs = [(prompt[0], answers)]
        else:
            parallel = isinstance(answers, list) and len(answers) == len(prompt)
            pairs = list(zip(prompt, answers if parallel else [None] * len(prompt), strict=True))
        for text, answer in pairs:
            if isinstance(text, str) and text.strip():
                yield text.strip(), texts(answer)


def shown(value: Any) -> str:
    """A value as a message names it, on one short line."""
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        written = repr(value)
        return written if len(written) <= _MOST_DIGITS else "a number"
    return "a list" if isinstance(value, list) else "a mapping"


def _first(record: Record, names: tuple[str, ...]) -> tuple[str, Any]:
    name = next((name for name in names if name in record), names[0])
    return name, record.get(name)
