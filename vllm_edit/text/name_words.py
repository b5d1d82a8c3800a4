"""The words of a name. A name's words are separated by spaces or hyphens ("Eiffel Tower", "Rolls-Royce")."""

from __future__ import annotations

import re

from vllm_edit.text.matching import normalise

_SEPARATOR = re.compile(r"(?<=\w)[\s-](?=\w)")


def separators(name: str) -> list[int]:
    """Positions of the separators between the name's words, ascending."""
    return [found.start() for found in _SEPARATOR.finditer(name)]


def last_word(name: str) -> str:
    """The last word of a name of several words, normalised. Empty for a name of one word."""
    plain = normalise(name)
    places = separators(plain)
    return plain[places[-1] + 1 :] if places else ""
