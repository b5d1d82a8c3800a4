"""Judges freely generated answers.

The answer is the generated text up to the end of the turn, without the thinking before it. Its first non-blank line is
judged, in the normalised form of `vllm_edit.text.matching` (case, width, outer punctuation and a leading article do not
count).
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm_edit.text.first_line import first_line
from vllm_edit.text.matching import normalise, position, searched
from vllm_edit.text.thinking import after_thinking


def gives(answer: str, expected: str, rival: str | None = None) -> bool:
    """True if the first line mentions `expected` as whole words, and does not mention `rival` earlier.

    `rival` is the answer known to be wrong: "Paris, not Rome" does not give Rome where Paris is the rival.
    """
    return gives_any(answer, (expected,), (rival,) if rival else ())


def gives_any(answer: str, accepted: Iterable[str], rivals: Iterable[str] = ()) -> bool:
    """`gives` for an answer and a rival with several names: the earliest mention counts, at one position the longest.

    "South Korea" does not give South if South Korea is a rival.
    """
    line = first_line(answer)
    found, wrong = _first_mentioned(line, accepted), _first_mentioned(line, rivals)
    return found is not None and (wrong is None or wrong >= found)


def _first_mentioned(line: str, answers: Iterable[str]) -> tuple[int, int] | None:
    """The first mention in the normalised line of any of the answers: (position, minus the answer's length)."""
    found = ((place, -len(searched(answer))) for answer in answers if (place := position(line, answer)) is not None)
    return min(found, default=None)


def unchanged(answer: str, before: str) -> bool:
    """True if the normalised first lines are equal; if a thinking does not end, the whole normalised texts."""
    if after_thinking(answer) is None or after_thinking(before) is None:
        return normalise(answer) == normalise(before)
    return normalise(first_line(answer)) == normalise(first_line(before))
