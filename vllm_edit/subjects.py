"""Which of many named things a text mentions, found in one pass whatever their number (Aho–Corasick, 1975).

The same definition as `text.mentions` (normalised forms, whole words where the script has words), with one rule more,
for names within names: an occurrence inside a longer name's occurrence is that name's. "New York" is not about York.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ahocorasick_rs import AhoCorasick

from vllm_edit.text import is_whole, normalise


class Subjects:
    """Things by number, each with its names. Immutable; searching needs no lock."""

    def __init__(self, names: Sequence[Collection[str]]) -> None:
        """names: of each thing. A name that several things have mentions all of them."""
        owners: dict[str, dict[int, None]] = {}
        for number, own in enumerate(names):
            for name in own:
                if key := normalise(name):
                    owners.setdefault(key, {})[number] = None
        self._owners = [tuple(numbers) for numbers in owners.values()]
        self._automaton = AhoCorasick(list(owners), store_patterns=False)

    def mentioned(self, texts: Iterable[str]) -> tuple[int, ...]:
        """Numbers of the things that any of the texts mentions, ascending. A name does not reach across texts."""
        found: set[int] = set()
        for text in texts:
            found.update(number for pattern in self._outermost(normalise(text)) for number in self._owners[pattern])
        return tuple(sorted(found))

    def _outermost(self, text: str) -> list[int]:
        """Patterns that occur in the normalised text as whole words, and not only within a longer occurrence."""
        occurrences = [
            (start, -end, pattern)
            for pattern, start, end in self._automaton.find_matches_as_indexes(text, overlapping=True)
            if is_whole(text, start, end)
        ]
        patterns, reached = [], 0
        for _, minus_end, pattern in sorted(occurrences):  # of those that begin together, the longest first
            if -minus_end > reached:
                patterns.append(pattern)
                reached = -minus_end
        return patterns
