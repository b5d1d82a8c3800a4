"""Finds the subjects that a text mentions, in one pass for any number of subjects (Aho–Corasick, 1975).

The definition is that of `matching.mentions` (normalised spelling, whole words where the script has words), with one
more rule: an occurrence inside a longer name's occurrence does not count. "New York" does not mention York.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ahocorasick_rs import AhoCorasick

from vllm_edit.text.matching import is_whole
from vllm_edit.text.spelling import Name, Written, readings


class Subjects:
    """An index of numbered subjects, each with its names. Immutable; searching needs no lock."""

    def __init__(self, names: Sequence[Collection[str]]) -> None:
        """`names` holds each subject's names. A name shared by several subjects mentions all of them."""
        owners: dict[str, dict[Name, dict[int, None]]] = {}
        for number, own in enumerate(names):
            for name in map(Name.of, own):
                if name.folded:
                    owners.setdefault(name.folded, {}).setdefault(name, {})[number] = None
        self._owners = [tuple((name, tuple(numbers)) for name, numbers in same.items()) for same in owners.values()]
        self._automaton = AhoCorasick(list(owners), store_patterns=False)

    def mentioned(self, texts: Iterable[str]) -> tuple[int, ...]:
        """Indices of the subjects that any of the texts mentions, ascending. A name cannot span two texts."""
        found: set[int] = set()
        for text in texts:
            for reading in readings(text):
                found.update(self._outermost(reading))
        return tuple(sorted(found))

    def _outermost(self, text: Written) -> set[int]:
        """Indices of the subjects whose names occur as whole words, not only within a longer occurrence."""
        occurrences = [
            (start, -end, numbers)
            for pattern, start, end in self._automaton.find_matches_as_indexes(text.folded, overlapping=True)
            for name, numbers in self._owners[pattern]
            if name.fits(text, start, end) and is_whole(text.ends, start, end)
        ]
        found, begun, reached = set[int](), -1, 0
        for start, minus_end, numbers in sorted(occurrences):  # among matches with the same start, the longest first
            if -minus_end > reached or (start, -minus_end) == (begun, reached):  # one place, several names
                found.update(numbers)
                begun, reached = start, -minus_end
        return found
