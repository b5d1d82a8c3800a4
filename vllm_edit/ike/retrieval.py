"""Similarity between short texts, for choosing demonstrations and relevant edits: deterministic and without a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rapidfuzz import fuzz

from vllm_edit.text.matching import words


def lexical(query: str, texts: Sequence[str]) -> list[float]:
    """Word overlap of each text with `query` in [0, 100]: the mean of rapidfuzz's token-set and token-sort ratios.

    The set ratio ignores word order and extra words; the sort ratio distinguishes texts that contain each other.
    Characters of scripts without spaces count as words.
    """
    wanted = _words(query)
    scores = []
    for text in texts:
        found = _words(text)
        scores.append((fuzz.token_set_ratio(wanted, found) + fuzz.token_sort_ratio(wanted, found)) / 2)
    return scores


def nearest_first(query: str, texts: Sequence[str]) -> list[int]:
    """Indices of `texts` by falling similarity to `query`; ties keep their order."""
    scores = lexical(query, texts)
    return sorted(range(len(texts)), key=lambda index: (-scores[index], index))


@lru_cache(maxsize=8192)
def _words(text: str) -> str:
    """`matching.words`, cached: every request needs the words of its patch's stored texts."""
    return words(text)
