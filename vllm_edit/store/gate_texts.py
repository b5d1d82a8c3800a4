"""Passages: ordinary text in a store, on which its gates measure the drift of perplexity.

They are chosen once, and do not overlap with the texts of the site's second moment: the solver minimizes the effect of
edits on those texts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_COUNT = 64
_LONGEST = 400
"""Maximum characters of a passage, so that a gate reads only some thousand tokens."""


def hold_out(texts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Split texts into passages (at most a tenth of them) and the remaining texts."""
    count = min(_COUNT, max(1, len(texts) // 10)) if len(texts) > 1 else 0
    chosen = random.Random(seed).sample(range(len(texts)), count)
    held = {texts[number] for number in chosen}
    return cut([texts[number] for number in sorted(chosen)]), [text for text in texts if text not in held]


def cut(texts: Sequence[str]) -> list[str]:
    """Limit texts to the number and length of a store's passages."""
    return [text[:_LONGEST] for text in texts[:_COUNT]]
