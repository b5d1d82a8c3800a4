"""Similarity between short texts, for choosing demonstrations and relevant edits.

`lexical` is the default: deterministic, without a model, for languages written with and without spaces. `semantic`
needs the extra of that name, which is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from rapidfuzz import fuzz

from vllm_edit.errors import EditError
from vllm_edit.text import words

Similarity = Callable[[str, Sequence[str]], list[float]]
"""From (query, texts) to the similarity of the query to each text; larger is more similar."""


def lexical(query: str, texts: Sequence[str]) -> list[float]:
    """Word overlap in [0, 100]: the mean of rapidfuzz's token-set and token-sort ratios.

    The set ratio ignores word order and extra words; the sort ratio distinguishes texts that contain each other.
    Characters of scripts without spaces count as words.
    """
    wanted = _words(query)
    scores = []
    for text in texts:
        found = _words(text)
        scores.append((fuzz.token_set_ratio(wanted, found) + fuzz.token_sort_ratio(wanted, found)) / 2)
    return scores


def semantic(model: str = "sentence-transformers/all-MiniLM-L6-v2") -> Similarity:
    """Cosine similarity of sentence embeddings, as in the IKE paper; embeddings are cached.

    Raises:
        EditError: the optional dependency is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise EditError("semantic similarity needs sentence-transformers: pip install 'vllm-edit[semantic]'") from None
    encoder = SentenceTransformer(model)
    known: dict[str, object] = {}

    def similarity(query: str, texts: Sequence[str]) -> list[float]:
        new = [text for text in dict.fromkeys([query, *texts]) if text not in known]
        if new:
            known.update(zip(new, encoder.encode(new, normalize_embeddings=True), strict=True))
        return [float(known[query] @ known[text]) for text in texts]  # type: ignore[operator]

    return similarity


def nearest_first(query: str, texts: Sequence[str], similarity: Similarity = lexical) -> list[int]:
    """Indices of `texts` by falling similarity to `query`; ties keep their order."""
    scores = similarity(query, texts) if texts else []
    return sorted(range(len(texts)), key=lambda index: (-scores[index], index))


@lru_cache(maxsize=8192)
def _words(text: str) -> str:
    """`text.words`, cached: every request needs the words of its patch's stored texts."""
    return words(text)
