"""The words of a patch's or a bank's stored texts, each text read once."""

from __future__ import annotations

from vllm_edit.text.matching import words


class StoredWords:
    """Caches `matching.words` of stored texts, for as long as their owner lives.

    It keeps every text that it reads. So it reads stored texts only, never the text of a request.
    """

    def __init__(self) -> None:
        self._words: dict[str, str] = {}

    def of(self, text: str) -> str:
        """The words of a stored text."""
        if text not in self._words:
            self._words[text] = words(text)
        return self._words[text]
