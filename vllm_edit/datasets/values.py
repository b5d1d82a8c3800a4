"""Reads values of records. Their types differ between sets and records; the only error raised here is `NoEdit`.

An answer is a text, a mapping that names it (`{"str": "Lyon", "id": "Q456"}`), or lists of these: several names of one
answer, or several accepted answers. A missing value is null, NaN, blank, or an empty list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vllm_edit.json_value import JSONValue
from vllm_edit.text.first_line import can_be_given
from vllm_edit.text.quoting import quoted

Record = Mapping[str, JSONValue]
_MOST_DIGITS = 20


class NoEdit(ValueError):
    """A record is not an edit; the message is one line with the reason."""


def texts(value: JSONValue) -> tuple[str, ...]:
    """The distinct texts of a value, in order. Numbers are ignored: they are not valid answers."""
    found, waiting = list[str](), [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found += filter(None, [item.strip()])
        elif isinstance(item, list):
            waiting += reversed(item)
        elif isinstance(item, dict):
            waiting.append(item.get("str"))
    return tuple(dict.fromkeys(found))


def text_of(record: Record, *names: str) -> str:
    """The text in the first of these fields that the record has.

    Raises:
        NoEdit: the value is not text, or blank.
    """
    name, value = _first(record, names)
    if not isinstance(value, str) or not value.strip():
        raise NoEdit(f"{name}: expected text, got {shown(value)}")
    return value.strip()


def answers_of(record: Record, *names: str) -> tuple[str, ...]:
    """The answers (at least one) in the first of these fields that the record has.

    Raises:
        NoEdit: there is no answer, or no text can give any of the answers.
    """
    name, value = _first(record, names)
    found = tuple(filter(can_be_given, texts(value)))
    if not found:
        raise NoEdit(f"{name}: expected an answer, got {shown(value)}")
    return found


def old_answers_of(record: Record, *names: str) -> tuple[str, ...]:
    """The answers in the first of these fields that has any."""
    return next((found for name in names if (found := tuple(filter(can_be_given, texts(record.get(name)))))), ())


def mapping(value: JSONValue) -> Record:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def asked(value: JSONValue) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Prompts with their answers, from a mapping, a list of mappings, or a mapping with a list per field.

    Other values, and mappings without a prompt, are skipped.
    """
    for item in map(mapping, value if isinstance(value, list) else [value]):
        prompt = item.get("prompt", item.get("New Question"))
        answers = item.get("ground_truth", item.get("New Answer"))
        if not isinstance(prompt, list):
            pairs = [(prompt, answers)]
        elif len(prompt) == 1:
            pairs = [(prompt[0], answers)]
        else:
            parallel = answers if isinstance(answers, list) and len(answers) == len(prompt) else [None] * len(prompt)
            pairs = list(zip(prompt, parallel, strict=True))
        for text, answer in pairs:
            if isinstance(text, str) and text.strip():
                yield text.strip(), texts(answer)


def shown(value: JSONValue) -> str:
    """A value for a message, on one short line."""
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        written = repr(value)
        return written if len(written) <= _MOST_DIGITS else "a number"
    return "a list" if isinstance(value, list) else "a mapping"


def _first(record: Record, names: tuple[str, ...]) -> tuple[str, JSONValue]:
    name = next((name for name in names if name in record), names[0])
    return name, record.get(name)
