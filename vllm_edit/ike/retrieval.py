"""Similarity between short texts, for choosing demonstrations and relevant edits: deterministic and without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rapidfuzz import fuzz

from vllm_edit.text.matching import words


def lexical(query: str, texts: Sequence[str], read: Callable[[str], str] = words) -> list[float]:
    """Word overlap of each text with `query` in [0, 100]: the mean of rapidfuzz's token-set and token-sort ratios.

    The set ratio ignores word order and extra words; the sort ratio distinguishes texts that contain each other.
    Characters of scripts without spaces count as words.

    Args:
        query: the text to compare with. It may be a client's prompt, so nothing keeps it.
        texts: the texts to compare.
        read: maps one of the texts to its words; `StoredWords.of` reads each text once.
    """
    wanted = words(query)
    scores = []
    for text in texts:
        found = read(text)
        scores.append((fuzz.token_set_ratio(wanted, found) + fuzz.token_sort_ratio(wanted, found)) / 2)
    return scores


def nearest_first(query: str, texts: Sequence[str], read: Callable[[str], str] = words) -> list[int]:
    """Indices of `texts` by falling similarity to `query`; ties keep their order. The arguments are `lexical`'s."""
    scores = lexical(query, texts, read)
    return sorted(range(len(texts)), key=lambda index: (-scores[index], index))
