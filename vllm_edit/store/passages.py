"""Passages: ordinary text that a store keeps, on which its gates measure the drift of perplexity.

They are chosen once, and apart from the texts that the site's second moment was measured on: edits are solved to do
little to those.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_COUNT = 64
_LONGEST = 400
"""Characters of a passage, so that a gate of a large model reads some thousand tokens and not a book."""


def hold_out(texts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Passages, a tenth of the texts at most, and the texts that are left for everything else."""
    count = min(_COUNT, max(1, len(texts) // 10)) if len(texts) > 1 else 0
    chosen = random.Random(seed).sample(range(len(texts)), count)
    held = {texts[number] for number in chosen}
    return cut([texts[number] for number in sorted(chosen)]), [text for text in texts if text not in held]


def cut(texts: Sequence[str]) -> list[str]:
    """At most so many texts as a store keeps, none longer than it keeps it."""
    return [text[:_LONGEST] for text in texts[:_COUNT]]
