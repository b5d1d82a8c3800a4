"""One pass over a text finds exactly the names that `text.mentions` finds one by one, less names within longer ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_edit.subjects import Subjects
from vllm_edit.text import is_whole, mentions, normalise

# Few characters, so that names overlap, and all kinds: case pairs, folds that change the length (ß, İ, ﬁ), a combining
# accent, digits, joiners, white space, full width, ideographs.
CHARACTERS = "aAbBß İﬁé\u0301york1_-. \t北京市Ａ。"
WORDS = st.text(CHARACTERS, max_size=5)
TEXTS = st.text(CHARACTERS, max_size=30)


def by_hand(names: list[str], text: str) -> set[int]:
    """Every place of every name, tried one by one; then those within a longer one's place left out."""
    haystack = normalise(text)
    places = [
        (start, start + len(needle), number)
        for number, name in enumerate(names)
        for needle in [normalise(name)]
        for start in range(len(haystack))
        if needle and haystack.startswith(needle, start) and is_whole(haystack, start, start + len(needle))
    ]
    return {
        number
        for start, end, number in places
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in places)
    }


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=6), TEXTS)
def test_one_pass_finds_what_a_search_name_by_name_finds(names: list[str], text: str) -> None:
    found = set(Subjects([[name] for name in names]).mentioned([text]))
    assert found == by_hand(names, text)
    mentioned = {number for number, name in enumerate(names) if mentions(text, name)}
    assert found <= mentioned
    inner = {normalise(names[number]) for number in mentioned - found}
    outer = [normalise(names[number]) for number in found]
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
        ("who wrote it", (7,)),  # a leading article does not count, in names either: a known price
        ("CÔTE D’IVOIRE’s capital", (8,)),
        ("Hawai'i", (9,)),
        ("", ()),
    ],
)
def test_longest_names_whole_words_letter_case_and_chinese(text: str, expected: tuple[int, ...]) -> None:
    assert Subjects(NAMES).mentioned([text]) == expected


def test_a_name_that_two_things_have_mentions_both_and_texts_are_joined_by_nothing() -> None:
    subjects = Subjects([["Mercury"], ["mercury", "Hg"], ["New York"]])
    assert subjects.mentioned(["Mercury"]) == (0, 1)
    assert subjects.mentioned(["New", "York"]) == ()
    assert subjects.mentioned(["Hg", "New York"]) == (1, 2)


def test_no_names_are_never_mentioned() -> None:
    assert Subjects([]).mentioned(["anything"]) == ()
    assert Subjects([["..."], []]).mentioned(["..."]) == ()
