"""Properties of texts in every script: equal texts, whole words, and the join of prompt and answer."""

from __future__ import annotations

import sys
import tracemalloc
import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_edit.text.matching import is_said, is_whole, mentions, normalise, occurrences, position, searched, spelled
from vllm_edit.text.prompts import continuation
from vllm_edit.text.scripts import is_spaceless
from vllm_edit.text.spelling import aligned, readings, written
from vllm_edit.text.subjects import Subjects

SPACED = {
    "Latin": "aeiouçñzéüßøAEIOUÇÑÉÜ",
    "marked Latin": "aeu\u0301\u0302\u0327",
    "Turkish": "iıİIstanbul",
    "Cyrillic": "абвийёАБВИЙЁ",
    "Greek": "αβγςσήόΐΑΒΓΣΉΌ",
    "Arabic": "مصرعربيةآأ\u064e\u0651\u0652",
    "Hebrew": "שלוםצרפת\u05b7\u05bc\u05b4",
    "Devanagari": "कखगतनािी्ं",
}
"""Scripts with spaces between words, and some of their letters and marks."""
UNSPACED = {
    "Thai": "กขคงปรสาเแ\u0e31\u0e35\u0e49",
    "Lao": "ກຂຄປຣສາເ\u0eb1\u0eb5\u0ec9",
    "Khmer": "កខគបរស\u17b6\u17b8\u17d2",
    "Burmese": "ကခဂပရသ\u102c\u102e\u1039\u103a",
    "Chinese": "法國的首都巴黎台北",
    "Japanese": "東京パリのはひらガキ\u3099",
}
LETTERS = {**SPACED, **UNSPACED, "Korean": "대한민국의수도는부산"}
INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u2060\ufeff\ufe0f"
ANY_TEXT = st.text(st.characters(), max_size=40) | st.text("".join(LETTERS.values()) + INVISIBLE + " -’.'", max_size=40)


def words_of(letters: str) -> st.SearchStrategy[str]:
    """Words of two to six characters that begin with a letter."""
    bases = [letter for letter in letters if not unicodedata.category(letter).startswith("M")]
    return st.builds(str.__add__, st.sampled_from(bases), st.text(letters, min_size=1, max_size=5))


in_any_script = st.sampled_from(sorted(LETTERS)).flatmap(lambda script: words_of(LETTERS[script]))
in_spaced_scripts = st.sampled_from(sorted(SPACED)).flatmap(lambda script: words_of(SPACED[script]))
forms = st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"])


@settings(deadline=None)
@given(in_any_script, in_any_script, in_any_script, forms)
def test_a_name_between_spaces_is_found_in_either_normal_form(name: str, before: str, after: str, form: str) -> None:
    text = unicodedata.normalize(form, f"{before} {name} {after}")
    assert mentions(text, name)
    assert position(text, name) is not None
    found = spelled(text, name)
    assert found is not None
    assert found in text
    assert written(found).folded == written(name).folded


@settings(deadline=None)
@given(in_any_script)
def test_letter_case_counts_in_an_answer_all_in_capitals_only(name: str) -> None:
    cased = written(name).cased
    for text in (name.upper(), name.lower(), name.casefold(), name.swapcase()):
        assert normalise(text) == normalise(name)
        assert is_said(f"({text})", name)
        given = not cased.isupper() or written(text).cased == cased
        assert (position(f"({text})", name) is not None) is given


@settings(deadline=None)
@given(in_spaced_scripts, st.data())
def test_a_name_within_a_longer_word_is_not_found(name: str, data: st.DataObject) -> None:
    letters = next(letters for letters in SPACED.values() if set(name) <= set(letters))
    more = data.draw(words_of(letters))
    for text in (name + more, more + name):
        if written(name).folded not in written(text).folded[1:-1] and text.count(name) == 1:
            assert not mentions(text, name)
            assert not occurrences(text, name)


@settings(deadline=None)
@given(in_any_script, st.sampled_from("་ၔกक्\u0301\u0e31\u0eb1\u17b6\u102c\u3099\u093f"))
def test_a_name_never_ends_within_a_character(name: str, mark: str) -> None:
    if unicodedata.category(mark).startswith("M"):
        assert not is_whole(name + mark, 0, len(name))


@settings(deadline=None)
@given(in_any_script, st.data())
def test_invisible_characters_do_not_hide_a_name(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(1, len(name)))
    hidden = name[:place] + data.draw(st.sampled_from(INVISIBLE)) + name[place:]
    assert mentions(f"({hidden})", name)
    assert Subjects([[name]]).mentioned([f"({hidden})"]) == (0,)


@settings(deadline=None)
@given(in_any_script, in_any_script)
def test_a_space_joins_prompt_and_answer_where_both_scripts_have_spaces(prompt: str, answer: str) -> None:
    unspaced = set("".join(UNSPACED.values()))
    joined = answer if prompt[-1] in unspaced or answer[0] in unspaced else f" {answer}"
    assert continuation(prompt, answer) == joined


@pytest.mark.parametrize("script", UNSPACED)
def test_scripts_without_spaces_have_none_before_their_marks_either(script: str) -> None:
    assert all(map(is_spaceless, UNSPACED[script]))


@pytest.mark.parametrize("script", [*SPACED, "Korean"])
def test_scripts_with_spaces_have_them(script: str) -> None:
    assert not any(map(is_spaceless, LETTERS[script]))


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_a_text_has_one_length_in_all_its_forms_and_its_places_are_its_own(text: str) -> None:
    for reading in readings(text):
        assert len(reading.cased) == len(reading.folded)
    assert written(text) in readings(text)
    folded, places = aligned(text)
    assert len(folded) == len(places)
    assert all(start < end <= len(text) for start, end in places)
    assert places == sorted(places)


@settings(deadline=None)
@given(in_any_script, in_any_script)
def test_a_text_in_pieces_is_spelled_as_the_whole(one: str, other: str) -> None:
    text = f"{one}-{other} {one}’{other} 3：10 {one}1：{other}，101，508：1000"
    assert aligned(text)[0] == written(text).folded


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT, ANY_TEXT)
def test_no_text_breaks_a_search(text: str, name: str) -> None:
    found = bool(Subjects([[name]]).mentioned([text]))
    assert found is mentions(text, name)
    assert position(text, name) is None or searched(name) in written(text).folded
    assert continuation(text, name).strip() == name.strip()


EVERYTHING = "".join(map(chr, range(sys.maxunicode + 1)))


def test_invisible_characters_are_those_that_unicode_says_may_be_ignored() -> None:
    for character in regex.findall(r"[\p{Default_Ignorable_Code_Point}--\u200B]", EVERYTHING, regex.V1):
        assert written(f"a{character}b").folded == "ab", hex(ord(character))


def test_every_dash_is_a_hyphen() -> None:
    for character in regex.findall(r"\p{Pd}", EVERYTHING):
        assert written(f"a{character}b").folded == "a-b", hex(ord(character))


def test_no_text_stays_in_memory_after_it_was_compared() -> None:
    tracemalloc.start()
    try:
        for number in range(20):
            assert mentions("ά" + "\u0301" * (100_000 + number) + " x", "α")
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
