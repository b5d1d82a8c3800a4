"""Classes of characters in every script: scripts with or without spaces, combining characters, invisible ones."""

from __future__ import annotations

from collections.abc import Iterator

import regex

SPACELESS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Tai_Le}"
    r"\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}"
)
"""Scripts without spaces between words, for a class of the `regex` package."""
EAST_ASIAN = r"\p{Han}\u2E80-\u9FFF\uF900-\uFAFF\uFE30-\uFE4F\uFF00-\uFFEF"
"""Characters of Chinese and Japanese, with punctuation and full-width forms; the ranges contain some Hangul."""
POINTS = (
    r"\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\u0610-\u061A\u0640\u064B-\u065F\u0670\u06D6-\u06DC"
    r"\u06DF-\u06E8\u06EA-\u06ED"
)
"""Marks that Hebrew and Arabic writers may leave out, and the stroke that only lengthens an Arabic word."""

# No class below has characters before these: one comparison decides for most text.
_FIRST_SPACELESS, _FIRST_MARK, _FIRST_HANGUL = "\u0e00", "\u0300", "\u1100"
_SPACELESS = regex.compile(rf"[[{SPACELESS}{EAST_ASIAN}]--\p{{Hangul}}]", regex.V1)
_CJK = regex.compile(rf"[[{EAST_ASIAN}]--\p{{Hangul}}]", regex.V1)
_HANGUL = regex.compile(r"\p{Hangul}")
_FOLLOWING = regex.compile(r"[\p{M}[\p{InSC=Vowel_Dependent}--\p{Logical_Order_Exception}]]", regex.V1)
_LEADING = regex.compile(r"[\p{Logical_Order_Exception}\p{InSC=Invisible_Stacker}]")
_OF_WORDS = regex.compile(r"[\p{L}\p{M}\p{N}]")
# The zero-width space is not among them: it ends a word.
_PASSED_OVER = regex.compile(rf"[[\p{{Default_Ignorable_Code_Point}}{POINTS}]--\u200B]", regex.V1)


def is_spaceless(character: str) -> bool:
    """True for scripts that are written without spaces between words, and for East Asian punctuation. Korean has
    spaces."""
    return character >= _FIRST_SPACELESS and _SPACELESS.match(character) is not None


def is_cjk(character: str) -> bool:
    """True for ideographs, kana, their punctuation and full-width forms, the characters of Chinese and Japanese."""
    return character >= _FIRST_SPACELESS and _CJK.match(character) is not None


def is_hangul(character: str) -> bool:
    return character >= _FIRST_HANGUL and _HANGUL.match(character) is not None


def is_following(character: str) -> bool:
    """True for characters that belong to the character before them: accents, vowel signs, viramas."""
    return character >= _FIRST_MARK and _FOLLOWING.match(character) is not None


def is_leading(character: str) -> bool:
    """True for characters that belong to the character after them: vowels of Thai and Lao, stackers of Khmer."""
    return character >= _FIRST_SPACELESS and _LEADING.match(character) is not None


def is_of_words(character: str) -> bool:
    """True for letters, marks and numbers."""
    return character.isalnum() if character.isascii() else _OF_WORDS.match(character) is not None


def is_passed_over(character: str) -> bool:
    """True for characters that are invisible or optional within a word."""
    return not character.isascii() and _PASSED_OVER.match(character) is not None


def visible(text: str, index: int, step: int) -> str:
    """The first visible character from `index` on, in the direction of `step`; empty beyond the text."""
    return next(all_visible(text, index, step), "")


def all_visible(text: str, index: int, step: int) -> Iterator[str]:
    """The visible characters from `index` on, in the direction of `step`."""
    while 0 <= index < len(text):
        if not is_passed_over(text[index]):
            yield text[index]
        index += step
