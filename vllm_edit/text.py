"""How an answer is joined to a prompt, and how a generated answer is compared with the expected one.

Every part of the project that scores or teaches an answer goes through these three functions, so that compiling,
evaluation and prompting agree on what "the answer follows the prompt" means.
"""

from __future__ import annotations

import re
import unicodedata

_SPACES = re.compile(r"\s+")
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


def quoted(text: str, most: int = 80) -> str:
    """The text in quotes, for a message: of more than `most` characters the first and the last ones."""
    if len(text) > most:
        text = f"{text[: most * 2 // 3 - 3].rstrip()} … {text[-(most // 3) :].lstrip()}"
    return repr(text)


def change(prompt: str, target: str) -> str:
    """An edit as messages name it: what is asked, and what is to be answered."""
    return f"{quoted(prompt)} → {quoted(target)}"


def normalise(text: str) -> str:
    """The form that is compared: case folded, NFKC, straight apostrophes, single spaces, no outer punctuation, no
    leading English article.

    Folding and NFKC change a text's length, so places in it are places in this form only.
    """
    text = _SPACES.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()
    text = text.replace("’", "'")  # what telephones type, and NFKC leaves
    text = text.strip(" .,;:!?\"'`()[]。，！？；：「」『』")
    return _LEADING_ARTICLE.sub("", text)


def mentions(text: str, answer: str) -> bool:
    """True if `answer` occurs in `text` as whole words (anywhere, for scripts without word boundaries)."""
    return position(text, answer) is not None


def position(text: str, answer: str) -> int | None:
    """Where `text`, normalised, first mentions `answer` (see `mentions`); None if it does not."""
    needle, haystack = normalise(answer), normalise(text)
    start = haystack.find(needle) if needle else -1
    while start >= 0 and not is_whole(haystack, start, start + len(needle)):
        start = haystack.find(needle, start + 1)
    return start if start >= 0 else None


def occurrences(text: str, name: str) -> list[int]:
    """Where `name`, as it is spelled, begins in `text` as a whole word (see `is_whole`)."""
    found, start = [], text.find(name) if name else -1
    while start >= 0:
        if is_whole(text, start, start + len(name)):
            found.append(start)
        start = text.find(name, start + 1)
    return found


def last_occurrence(text: str, name: str) -> int | None:
    """Where `name`, as it is spelled, begins for the last time; None if it does not occur.

    A whole word counts before a part of one: an edit of Niger is not about Nigeria.
    """
    whole = occurrences(text, name)
    if whole:
        return whole[-1]
    start = text.rfind(name) if name else -1
    return start if start >= 0 else None


def is_whole(text: str, start: int, end: int) -> bool:
    """True if `text[start:end]` is no part of a longer word: no letter or digit goes on at either end.

    An end that is punctuation, or of a script without word boundaries, needs none; nor is a neighbour of such a script
    a part of the word.
    """
    first, last = text[start], text[end - 1]
    goes_on_left = start > 0 and _in_word(first) and _in_word(text[start - 1])
    return not goes_on_left and not (end < len(text) and _in_word(last) and _in_word(text[end]))


def _in_word(character: str) -> bool:
    """True for letters and digits of scripts with word boundaries."""
    return character.isalnum() and not is_cjk(character)
