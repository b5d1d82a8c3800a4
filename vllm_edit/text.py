"""How an answer is joined to a prompt, and how a generated answer is compared with the expected one.

Every part of the project that scores or teaches an answer goes through these three functions, so that compiling,
evaluation and prompting agree on what "the answer follows the prompt" means.
"""

from __future__ import annotations

import re
import unicodedata

_SPACES = re.compile(r"\s+")
_LETTER = r"(?:(?![\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef])[^\W_])"  # of a script with word boundaries
_LEADING_ARTICLE = re.compile(r"^(?:the|an|a) ")


def is_cjk(character: str) -> bool:
    """True for ideographs, kana, hangul and full-width punctuation: scripts written without spaces between words."""
    code = ord(character)
    return 0x2E80 <= code <= 0x9FFF or 0xAC00 <= code <= 0xD7AF or 0xF900 <= code <= 0xFAFF or 0xFF00 <= code <= 0xFFEF


def continuation(prompt: str, answer: str) -> str:
    """The answer as the text that follows `prompt`.

    A space goes between them unless either side is written without spaces, or the prompt already ends in white space
    (a chat template's generation prompt does). An answer that brings its own leading space keeps exactly one.
    """
    answer = answer.strip()
    if not prompt or prompt[-1].isspace() or not answer or is_cjk(prompt[-1]) or is_cjk(answer[0]):
        return answer
    return " " + answer


def normalise(text: str) -> str:
    """Lower case, NFKC, single spaces, no outer punctuation, no leading English article: the form that is compared."""
    text = _SPACES.sub(" ", unicodedata.normalize("NFKC", text)).strip().lower()
    text = text.strip(" .,;:!?\"'`()[]。，！？；：「」『』")
    return _LEADING_ARTICLE.sub("", text)


def mentions(text: str, answer: str) -> bool:
    """True if `answer` occurs in `text` as whole words (anywhere, for scripts without word boundaries)."""
    return position(text, answer) is not None


def position(text: str, answer: str) -> int | None:
    """Where `text`, normalised, first mentions `answer` (see `mentions`); None if it does not."""
    needle, haystack = normalise(answer), normalise(text)
    if not needle:
        return None
    left = "" if is_cjk(needle[0]) or not needle[0].isalnum() else rf"(?<!{_LETTER})"
    right = "" if is_cjk(needle[-1]) or not needle[-1].isalnum() else rf"(?!{_LETTER})"
    found = re.search(left + re.escape(needle) + right, haystack)
    return found.start() if found else None
