"""How a freely generated answer is judged.

The answer is the generated text up to the end of the turn; its first line that is not blank is judged, in the
normalised form of `vllm_edit.text` (case, width, outer punctuation and a leading article do not count).
"""

from __future__ import annotations

from vllm_edit.text import normalise, position


def first_line(answer: str) -> str:
    """The first line that is not blank; empty if there is none."""
    return answer.strip().split("\n")[0].strip()


def gives(answer: str, expected: str, rival: str | None = None) -> bool:
    """True if the first line mentions `expected` as whole words, and does not mention `rival` earlier.

    `rival` is the answer known to be wrong: "Paris, not Rome" does not give Rome where Paris is the rival.
    """
    line = first_line(answer)
    found = position(line, expected)
    if found is None:
        return False
    wrong = position(line, rival) if rival else None
    # A rival that starts at the same place is a part of the expected answer, or the other way round.
    return wrong is None or wrong >= found


def unchanged(answer: str, before: str) -> bool:
    """True if both first lines are the same once normalised."""
    return normalise(first_line(answer)) == normalise(first_line(before))
