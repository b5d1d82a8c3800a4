"""What pydantic found wrong with a file or record, as lines for a person."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_WORDS = {
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected a mapping, with a value for each field",
    "model_type": "expected a mapping, with a value for each field",
    "model_attributes_type": "expected a mapping, with a value for each field",
}
"""Kinds of problems that pydantic describes by the types of Python → plain words."""


def message_of(problem: ErrorDetails) -> str:
    """What a problem is, in plain words, without the field and the given value."""
    if problem["type"] == "too_short":
        return f"expected a list of at least {problem['ctx']['min_length']}, got {problem['ctx']['actual_length']}"
    return _WORDS.get(problem["type"], problem["msg"])


def problems_of(error: ValidationError, whole: str = "the file") -> list[str]:
    """One line per problem: its field, dotted, and the message. whole: the name for a problem of no single field."""
    return [f"{'.'.join(map(str, problem['loc'])) or whole}: {message_of(problem)}" for problem in error.errors()]
