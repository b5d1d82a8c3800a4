"""One pass over a text finds the names that `matching.mentions` finds one by one, less names within longer ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_edit.text.matching import is_whole, mentions
from vllm_edit.text.spelling import Name, readings
from vllm_edit.text.subjects import Subjects

# Few characters, so that names overlap, and all kinds: case pairs, folds that change the length (ß, İ, ﬁ), a combining
# accent, digits, joiners, white space, full width, ideographs, Korean, Thai and Devanagari with their marks, what is
# invisible, and half of a surrogate pair.
CHARACTERS = "aAbBß İıﬁé\u0301york1_-.+# \t北京市Ａ。부산กี्त\u200b\u00ad\ud83d"
WORDS = st.text(CHARACTERS, max_size=5)
TEXTS = st.text(CHARACTERS, max_size=30)


def by_hand(names: list[str], text: str) -> set[int]:
    """Every place of every name, tried one by one; then those within a longer one's place left out."""
    found = set[int]()
    for reading in readings(text):
        places = [
            (start, start + len(name.folded), number)
            for number, name in enumerate(map(Name.of, names))
            for start in range(len(reading.folded))
            if name.folded and reading.folded.startswith(name.folded, start)
            if name.fits(reading, start, start + len(name.folded))
            if is_whole(reading.cased, start, start + len(name.folded))
        ]
        found |= {
            number
            for start, end, number in places
            if not any(s <= start and end <= e and e - s > end - start for s, e, _ in places)
        }
    return found


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=6), TEXTS)
def test_one_pass_finds_the_same_as_a_search_name_by_name(names: list[str], text: str) -> None:
    found = set(Subjects([[name] for name in names]).mentioned([text]))
    assert found == by_hand(names, text)
    mentioned = {number for number, name in enumerate(names) if mentions(text, name)}
    assert found <= mentioned
    inner = {Name.of(names[number]).folded for number in mentioned - found}
    outer = [Name.of(names[number]).folded for number in found]
    assert all(any(name in longer and name != longer for longer in outer) for name in inner)


@settings(max_examples=200, deadline=None)
@given(WORDS, TEXTS)
def test_a_single_name_is_found_exactly_when_it_is_mentioned(name: str, text: str) -> None:
    assert bool(Subjects([[name]]).mentioned([text])) is mentions(text, name)


NAMES = [
    ["New York", "Big Apple"],
    ["York"],
    ["York City"],
    ["台北", "Taipei"],
    ["台北101"],
    ["Straße"],
    ["U.S."],
    ["The Who"],
    ["Côte d'Ivoire"],
    ["Hawai’i"],
    ["US"],
    [".NET"],
    ["C"],
    ["C++"],
    ["C#"],
    ["The Netherlands", "Holland"],
    ["AC/DC"],
    ["Foo Bar"],
    ["부산"],
    ["ฝรั่งเศส"],
    ["ຝຣັ່ງ"],
    ["បារាំង"],
    ["ပြင်သစ်"],
    ["भारत"],
    ["فرنسا"],
    ["צרפת"],
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I love NEW  YORK.", (0,)),
        ("New Yorkers", ()),
        ("York and New York", (0, 1)),
        ("in New York City", (0, 2)),
        ("the big apple", (0,)),
        ("台北有多大", (3,)),
        ("台北101高幾公尺", (4,)),
        ("我在taipei住", (3,)),
        ("STRASSE", (5,)),
        ("the U.S. today", (6,)),
        ("who wrote it", ()),
        ("songs of the Who", (7,)),
        ("CÔTE D’IVOIRE’s capital", (8,)),
        ("Hawai'i", (9,)),
        ("tell us", ()),
        ("Us and them", ()),
        ("the US army", (10,)),
        ("net income", ()),
        ("a .NET programme", (11,)),
        ("vitamin C", (12,)),
        ("C++ and C#", (13, 14)),
        ("c++", ()),
        ("in the netherlands", (15,)),
        ("the Netherlands’ king", (15,)),
        ("ac/dc", ()),
        ("AC/DC’s", (16,)),
        ("foo\u00adbar", (17,)),
        ("Foo\u200bBar", (17,)),
        ("foo\u2060 bar", (17,)),
        ("Foo™ Bar™", (17,)),
        ("Foo® Bar℠’s", (17,)),
        ("Ｃ＋＋１", (13,)),
        ("부산은 어디", (18,)),
        ("일부산업", ()),
        ("เมืองหลวงของฝรั่งเศสคือ", (19,)),
        ("ນະຄອນຫຼວງຂອງຝຣັ່ງແມ່ນ", (20,)),
        ("រដ្ឋធានីនៃប្រទេសបារាំងគឺ", (21,)),
        ("ပြင်သစ်နိုင်ငံ၏မြို့တော်မှာ", (22,)),
        ("भारत की राजधानी", (23,)),
        ("भारतीय", ()),
        ("عاصمة فَرَنسا هي", (24,)),
        ("בירת צָרְפַת היא", (25,)),
        ("", ()),
    ],
)
def test_longest_names_whole_words_letter_case_and_scripts(text: str, expected: tuple[int, ...]) -> None:
    assert Subjects(NAMES).mentioned([text]) == expected


def test_a_name_that_two_things_have_mentions_both_and_texts_are_joined_by_nothing() -> None:
    subjects = Subjects([["Mercury"], ["mercury", "Hg"], ["New York"]])
    assert subjects.mentioned(["Mercury"]) == (0, 1)
    assert subjects.mentioned(["New", "York"]) == ()
    assert subjects.mentioned(["Hg", "New York"]) == (1, 2)


def test_one_spelling_in_two_letter_cases_is_two_names() -> None:
    subjects = Subjects([["US"], ["us"], ["US Steel"]])
    assert subjects.mentioned(["tell us"]) == (1,)
    assert subjects.mentioned(["the US"]) == (0, 1)
    assert subjects.mentioned(["US Steel"]) == (2,)
    assert subjects.mentioned(["tell us steel sinks"]) == (2,)


def test_half_a_surrogate_pair_is_no_text_but_breaks_nothing() -> None:
    assert Subjects([["Rome"]]).mentioned(["half \ud83d Rome"]) == (0,)
    assert Subjects([["\udc00"], ["Rome"]]).mentioned(["\ud83d"]) == ()


def test_no_names_are_never_mentioned() -> None:
    assert Subjects([]).mentioned(["anything"]) == ()
    assert Subjects([["..."], []]).mentioned(["..."]) == ()
