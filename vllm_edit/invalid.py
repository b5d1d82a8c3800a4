"""What pydantic found wrong with a file or record, as lines for a person."""

from __future__ import annotations

from pydantic import ValidationError


def problems_of(error: ValidationError, whole: str = "the file") -> list[str]:
    """One line per problem: its field, dotted, and the message. whole: the name for a problem of no single field."""
    return [f"{'.'.join(map(str, problem['loc'])) or whole}: {problem['msg']}" for problem in error.errors()]
