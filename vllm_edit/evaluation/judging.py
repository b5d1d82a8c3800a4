"""How a freely generated answer is judged.

The answer is the generated text up to the end of the turn, without the thinking before it. Its first line that is not
blank is judged, in the normalised form of `vllm_edit.text` (case, width, outer punctuation and a leading article do not
count).
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm_edit.text import normalise, position
from vllm_edit.thinking import after_thinking


def first_line(answer: str) -> str:
    """The answer's first line that is not blank; empty if there is none, as in a thinking that does not end."""
    return (after_thinking(answer) or "").strip().split("\n")[0].strip()


def gives(answer: str, expected: str, rival: str | None = None) -> bool:
    """True if the first line mentions `expected` as whole words, and does not mention `rival` earlier.

    `rival` is the answer known to be wrong: "Paris, not Rome" does not give Rome where Paris is the rival.
    """
    return gives_any(answer, (expected,), (rival,) if rival else ())


def gives_any(answer: str, accepted: Iterable[str], rivals: Iterable[str] = ()) -> bool:
    """`gives` for an answer and a rival that have several names: the one that is mentioned first counts."""
    line = first_line(answer)
    found, wrong = _first_mentioned(line, accepted), _first_mentioned(line, rivals)
    # A rival that starts at the same place is a part of the expected answer, or the other way round.
    return found is not None and (wrong is None or wrong >= found)


def _first_mentioned(line: str, answers: Iterable[str]) -> int | None:
    """The first place in the normalised line at which any of the answers is mentioned."""
    return min((found for answer in answers if (found := position(line, answer)) is not None), default=None)


def unchanged(answer: str, before: str) -> bool:
    """True if both first lines are the same once normalised; of two thinkings that do not end, all of both."""
    if after_thinking(answer) is None or after_thinking(before) is None:
        return normalise(answer) == normalise(before)
    return normalise(first_line(answer)) == normalise(first_line(before))
