"""Normalises spelling for comparison, in every script.

Letter case, width, NFC or NFD, hyphens and dashes, apostrophes, quotation marks and white space do not distinguish two
texts. Nor do trade mark signs, invisible characters, and optional marks: the points of Hebrew and Arabic, and the
accents of Greek, which its capitals do not have.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import regex

from vllm_edit.text.scripts import EAST_ASIAN, POINTS, SPACELESS

_ZERO_WIDTH_SPACE, _SOFT_HYPHEN = "\u200b", "\u00ad"
_INVISIBLE = re.compile(  # Default_Ignorable_Code_Point, and control characters that are no white space
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
_NO_SPACES = rf"[{SPACELESS}{EAST_ASIAN}]"
_ZERO_WIDTH_WITHIN = regex.compile(rf"(?<={_NO_SPACES})\u200b+|\u200b+(?={_NO_SPACES})")
_HYPHENS = (
    "\u058a\u05be\u1400\u1806\u2010-\u2015\u2043\u2212\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u2e5d\u301c\u3030\u30a0\ufe31"
    "\ufe32\ufe58\ufe63\uff0d\U00010d6e\U00010ead"
)
_APOSTROPHES = "\u02b9\u02bb-\u02bf\u02c8\u055a\u05f3\u2018-\u201b\u2032\u2039\u203a\ua78b\ua78c"
_QUOTATION_MARKS = "\u00ab\u00bb\u05f4\u201c-\u201f"
_GREEK = "\u0386-\u0390\u03aa-\u03b0\u03ca-\u03ce\u03d3\u03d4\u1f00-\u1fff"
_HALF_PAIRS = "\ud800-\udfff"
_VARIANT = re.compile(f"[{_HYPHENS}{_APOSTROPHES}{_QUOTATION_MARKS}{POINTS}{_GREEK}{_HALF_PAIRS}][\u0300-\u036f]*")
_COMMON = (
    (re.compile(f"[{_HYPHENS}]"), "-"),
    (re.compile(f"[{_APOSTROPHES}]"), "'"),
    (re.compile(f"[{_QUOTATION_MARKS}]"), '"'),
    (re.compile(f"[{POINTS}]"), ""),
    (re.compile(f"[{_HALF_PAIRS}]"), "\ufffd"),
)
_BEFORE_NFKC = str.maketrans("´", "'", "™℠®")
"""Characters that NFKC would turn into a space with an accent, or (trade mark signs) into letters."""
_WIDE_MARKS, _NARROW_MARKS = "，：", ",:"
_TO_NARROW = str.maketrans(_WIDE_MARKS, _NARROW_MARKS)
_WIDE_NUMBER = re.compile(
    r"(?<![\d：])\d{1,2}(?:：\d{1,2})+(?![\d：])|(?<![０-９，])[０-９]{1,3}(?:，[０-９]{3})+(?!，?[０-９])"
)
"""Numbers with wide marks: a time or a score (10：30), and thousands in full width (８０，０００)."""
_WIDE_BETWEEN_DIGITS = re.compile(r"(?<=\d)[，：](?=\d)")
"""Wide marks between two numbers: they end a clause of Chinese or Japanese."""
_STAND_INS = "\ufdd0\ufdd1"
"""Noncharacters, which NFKC keeps: they stand for the wide marks between two numbers meanwhile."""
_TO_STAND_INS = str.maketrans(_WIDE_MARKS, _STAND_INS)
_TO_MARKS = str.maketrans(_STAND_INS, _NARROW_MARKS)
_TO_ENDS = str.maketrans(_STAND_INS, _WIDE_MARKS)
_NAMING = regex.compile(r"[^\p{P}\s\uFFFD]")
_CHARACTER = regex.compile(r"\X")  # as readers count them: a letter with its marks


@dataclass(frozen=True)
class Written:
    """A text in one spelling for all, three times, equally long, place by place.

    Attributes:
        cased: With its letter case.
        folded: Without letter case.
        ends: Like `cased`, but a wide mark between two numbers is still wide, so that both numbers end there.
    """

    cased: str
    folded: str
    ends: str


@dataclass(frozen=True)
class Name:
    """A name to find in texts. `cased` also holds the letter case, which counts if the name is all in capitals."""

    folded: str
    cased: str | None

    @classmethod
    def of(cls, name: str) -> Name:
        """The name with its article and punctuation; empty, so nowhere, if nothing of it can name anything."""
        found = written(name)
        if not _NAMING.search(found.folded):
            return cls("", None)
        return cls.cut(found, 0, len(found.folded))

    @classmethod
    def cut(cls, text: Written, start: int, end: int) -> Name:
        """The name at this place in a text."""
        cased = text.cased[start:end]
        return cls(text.folded[start:end], cased if cased.isupper() else None)

    def fits(self, text: Written, start: int, end: int) -> bool:
        """True if the text at this place has the name's letter case, where that counts."""
        return self.cased is None or text.cased[start:end].replace(_SOFT_HYPHEN, " ") == self.cased


def written(text: str) -> Written:
    """The text in the spelling that is compared; its length differs from the text's.

    A zero-width space counts as a space, except within scripts without spaces. Other invisible characters are removed.
    """
    return _written(_without_invisible(text) if _INVISIBLE.search(text) else text)


def readings(text: str) -> tuple[Written, ...]:
    """The ways to read a text in which invisible characters may stand for a space or for nothing: mostly one.

    In one of them a soft hyphen stands for what was invisible: a space in `folded`, nothing where `cased` shows
    the ends of words.
    """
    if not _INVISIBLE.search(text):
        return (_written(text),)
    within = _ZERO_WIDTH_WITHIN.sub("", text)
    joined = _INVISIBLE.sub(lambda run: " " if _ZERO_WIDTH_SPACE in run[0] else _SOFT_HYPHEN, within)
    return tuple(
        dict.fromkeys(_written(reading) for reading in (_without_invisible(text), _INVISIBLE.sub("", text), joined))
    )


def narrow_in_numbers(text: str) -> str:
    """The text with narrow marks within its numbers (see `_WIDE_NUMBER`), of the same length."""
    return _WIDE_NUMBER.sub(lambda number: number[0].translate(_TO_NARROW), text)


def aligned(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The folded text of `written`, and for each of its characters the start and end in `text`."""
    folded, places = list[str](), list[tuple[int, int]]()
    for found in _CHARACTER.finditer(_ZERO_WIDTH_WITHIN.sub(lambda run: _SOFT_HYPHEN * len(run[0]), text)):
        if found[0].isspace() or found[0] == _ZERO_WIDTH_SPACE:
            new = "" if folded[-1:] == [" "] else " "
        else:
            new = written(found[0]).folded
        folded += new
        places += [found.span()] * len(new)
    return "".join(folded), places


def _without_invisible(text: str) -> str:
    return _INVISIBLE.sub("", _ZERO_WIDTH_WITHIN.sub("", text).replace(_ZERO_WIDTH_SPACE, " "))


def _written(text: str) -> Written:
    if not text.isascii():
        text = _WIDE_BETWEEN_DIGITS.sub(lambda mark: mark[0].translate(_TO_STAND_INS), narrow_in_numbers(text))
        text = unicodedata.normalize("NFKC", text.translate(_BEFORE_NFKC))
        text = _VARIANT.sub(lambda found: _common(found[0][0]), text).replace("i\u0307", "i")
    cased = " ".join(text.replace("`", "'").split())
    folded = cased.casefold()
    if len(folded) != len(cased):
        cased = cased.translate(
            {ord(letter): _at_length(letter) for letter in set(cased) if len(letter.casefold()) > 1}
        )
        folded = cased.casefold()
    folded = folded.translate(_TO_MARKS).replace("ı", "i").replace(_SOFT_HYPHEN, " ")
    return Written(cased.translate(_TO_MARKS), folded, cased.translate(_TO_ENDS))


@lru_cache(maxsize=4096)
def _common(character: str) -> str:
    """The replacement of a variant's first character, whatever marks follow it; a Greek letter loses its accents."""
    found = (common for kind, common in _COMMON if kind.match(character))
    return next(found, unicodedata.normalize("NFD", character)[0])


def _at_length(character: str) -> str:
    """The characters into which case folding turns one character: ß gives ss. The Turkish İ gives I."""
    if character == "İ":
        return "I"
    return character.casefold().upper() if character.isupper() else character.casefold()
