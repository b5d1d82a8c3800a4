"""Whole words, and where a text mentions a name or gives an answer, in every script.

Compiling, evaluation and serving all use these functions, so that they agree. `is_whole` is the rule for words,
`spelling.written` the rule for spellings.

There are two kinds of search terms. A *name* (`mentions`, `subjects.Subjects`) keeps its article and its punctuation.
An *answer* (`position`) counts without its article and its outer punctuation, except a full stop that begins a word
(".NET"). A or An with a capital is no article of an answer ("A minor"). The letter case of both counts if they are all
in capitals: "it is" does not mention IT, and is not the answer IT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import regex

from vllm_edit.text.scripts import (
    EAST_ASIAN,
    SPACELESS,
    all_visible,
    is_following,
    is_hangul,
    is_leading,
    is_of_words,
    is_spaceless,
    visible,
)
from vllm_edit.text.spelling import Name, aligned, narrow_in_numbers, readings, written

_SIGNS = regex.compile(r"[+#]+(?![\p{L}\p{N}])")
_ARTICLE = re.compile(r"(?:the|an|a) ")
_ARTICLE_OF_ANSWER = re.compile(r"(?:(?i:the)|an?) ")
_BEGINNING_STOP = re.compile(r"(?:^|[\s\"'(\[])\.$")
_OUTER = " .,;:!?\"'`()[]。，！？；：「」『』"
_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F) if chr(wide) not in "，："}
_IN_NUMBERS = frozenset(".,:/\u2044\u060c\u066b\u066c")
"""Marks that belong to a number between two digits; after the slash the fraction slash and three Arabic marks."""
_MINUS = frozenset("-\u2212")
_QUOTES = frozenset("\"'")
_BEFORE_MINUS = regex.compile(r"[\s\p{Ps}\p{Pi}=<>≈≠≤≥:;,，：；、]")
_APART = regex.compile(rf"[{SPACELESS}{EAST_ASIAN}\p{{Hangul}}]\p{{M}}*")


def normalise(text: str) -> str:
    """The form in which answers are compared: in one spelling, without letter case, outer punctuation and a leading
    English article. Its length differs from the text's, so its positions are not positions in the text."""
    folded = written(text).folded
    start, end = _inner(folded)
    return folded[start:end]


def words(text: str) -> str:
    """The normalised text with a space between any two words, and around each character that can be a word."""
    apart: str = _APART.sub(r" \g<0> ", normalise(text))
    return apart


def position(text: str, answer: str) -> int | None:
    """Where `text`, normalised, first gives the answer as whole words; None if it does not.

    The letter case counts if the answer is all in capitals; a full stop that begins the answer counts too.
    """
    read, wanted = written(text), _answer(answer)
    first, length = _inner(read.folded)[0], len(wanted.folded)
    outer = _without_outer(read.folded)[0]  # the text's own article may begin the answer: "A minor"
    found = (
        max(start - first, 0)
        for start in _places(read.folded, wanted.folded)
        if start >= outer - 1  # one before: a full stop that belongs to the answer
        and wanted.fits(read, start, start + length)
        and is_whole(read.ends, start, start + length)
    )
    return next(found, None)


def searched(answer: str) -> str:
    """The form in which `position` searches the answer: normalised, but with a capital A or An, or a full stop, that
    begins it."""
    return _answer(answer).folded


def is_said(text: str, name: str) -> bool:
    """True if the text contains the name as whole words in any letter case, with or without its article."""
    needle, haystack = normalise(name), normalise(text)
    return any(is_whole(haystack, start, start + len(needle)) for start in _places(haystack, needle))


def mentions(text: str, name: str) -> bool:
    """True if the text mentions the name. `subjects.Subjects` applies the same rule to many names at once."""
    wanted = Name.of(name)
    length = len(wanted.folded)
    return any(
        wanted.fits(reading, start, start + length) and is_whole(reading.ends, start, start + length)
        for reading in readings(text)
        for start in _places(reading.folded, wanted.folded)
    )


def occurrences(text: str, name: str) -> list[int]:
    """Positions in `text` at which `name`, in exactly this spelling, begins as a whole word (see `is_whole`)."""
    seen = _narrow(text)
    return [start for start in _places(text, name) if is_whole(seen, start, start + len(name))]


def last_occurrence(text: str, name: str) -> int | None:
    """Position of the last occurrence of `name`, in exactly this spelling; None if it does not occur.

    A whole word takes precedence over a part of a word: an edit of Niger is not about Nigeria.
    """
    whole = occurrences(text, name)
    if whole:
        return whole[-1]
    start = text.rfind(name) if name else -1
    return start if start >= 0 else None


def replaced(text: str, name: str, by: str) -> str:
    """Replace every occurrence of the name, as a whole word in exactly this spelling, with `by`."""
    parts, reached = list[str](), 0
    for start in occurrences(text, name):
        if start >= reached:  # not within the previous occurrence
            parts.append(text[reached:start])
            reached = start + len(name)
    return by.join([*parts, text[reached:]])


def spelled(prompt: str, subject: str) -> str | None:
    """The subject in the prompt's spelling, as a whole word; None if the prompt does not contain it.

    Other spellings (`spelling.written`) count only if `subject` itself does not occur.
    """
    if occurrences(prompt, subject):
        return subject
    (folded, places), seen = aligned(prompt), _narrow(prompt)
    wanted, found = written(subject).folded, None
    for first in _places(folded, wanted):
        start, end = places[first][0], places[first + len(wanted) - 1][1]
        if written(prompt[start:end]).folded == wanted and is_whole(seen, start, end):
            found = prompt[start:end]
    return found


def is_whole(text: str, start: int, end: int) -> bool:
    """True if `text[start:end]` is no part of a longer word: no letter, mark or number goes on at either end.

    A number goes on over one mark of `_IN_NUMBERS` to the next digit, and begins with its minus sign: 3 is no word of
    "3.10", and 5 none of "-5". After a letter, a number or a closing bracket the sign is a hyphen ("GPT-4").

    In scripts without spaces every character may end a word, but only with its vowels and marks. In Korean a space
    begins a word, and particles follow it without a space. An end is always valid if it is punctuation or if a
    different kind of script is next to it. Invisible characters are skipped. C is not C++ or C#. Full-width letters in
    `text` count as East Asian.
    """
    first, last = text[start], text[end - 1]
    before, after = visible(text, start - 1, -1), visible(text, end, 1)
    if before and (_are_one_word(before, first) or is_leading(before) or (is_following(first) and is_of_words(before))):
        return False
    if _is_within_number(text, start) or _is_within_number(text, end) or _is_negative(text, start):
        return False
    if after in ("+", "#"):
        return not is_of_words(last) or is_spaceless(last) or not _SIGNS.match(text, text.index(after, end))
    return not after or not (is_following(after) or (_are_one_word(last, after) and not is_hangul(last)))


def _inner(folded: str) -> tuple[int, int]:
    """Start and end of a folded text without outer punctuation and a leading article."""
    start, end = _without_outer(folded)
    article = _ARTICLE.match(folded, start, end)
    return article.end() if article else start, end


def _without_outer(folded: str) -> tuple[int, int]:
    """Start and end of a folded text without outer punctuation."""
    return len(folded) - len(folded.lstrip(_OUTER)), len(folded.rstrip(_OUTER))


def _answer(text: str) -> Name:
    """An answer to search in texts (see `searched`)."""
    read = written(text)
    start, end = _without_outer(read.folded)
    if article := _ARTICLE_OF_ANSWER.match(read.cased, start, end):
        start = article.end()
    return Name.cut(read, start - 1 if _BEGINNING_STOP.search(read.folded[:start]) else start, end)


def _are_one_word(left: str, right: str) -> bool:
    """True if two adjacent characters belong to one word."""
    if left.isascii() and right.isascii():
        return left.isalnum() and right.isalnum()
    if is_spaceless(left) or is_spaceless(right) or is_hangul(left) is not is_hangul(right):
        return False
    return is_of_words(left) and is_of_words(right)


def _is_within_number(text: str, place: int) -> bool:
    """True if a number with a mark goes on across this place: 1|.5 or 1.|5."""
    left, right = all_visible(text, place - 1, -1), all_visible(text, place, 1)
    before, after = next(left, ""), next(right, "")
    if after in _IN_NUMBERS:
        return before.isdecimal() and next(right, "").isdecimal()
    return before in _IN_NUMBERS and after.isdecimal() and next(left, "").isdecimal()


def _is_negative(text: str, start: int) -> bool:
    """True if a number that begins here has a minus sign. A hyphen of a word or a range is none."""
    left = all_visible(text, start - 1, -1)
    if not text[start].isdecimal() or next(left, "") not in _MINUS:
        return False
    before = next(left, "")
    if before in _QUOTES:
        before = next(left, "")  # a word before a quotation mark ends there, and the mark begins nothing
    return not before or _BEFORE_MINUS.match(before) is not None


def _narrow(text: str) -> str:
    """The text with full-width characters in their normal width, for finding word boundaries."""
    return text if text.isascii() else narrow_in_numbers(text).translate(_WIDE)


def _places(text: str, wanted: str) -> Iterator[int]:
    """Positions of `wanted` in `text`, including overlapping ones; none if it is empty."""
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        yield start
        start = text.find(wanted, start + 1)
