"""Rules for a given answer and for an unchanged answer."""

from __future__ import annotations

import pytest

from vllm_edit.evaluation.judging import gives, gives_any, unchanged
from vllm_edit.text.first_line import first_line


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (" Rome.", "Rome", True),
        ("the city of Rome, of course", "Rome", True),
        ("Romeo", "Rome", False),
        ("chrome", "Rome", False),
        ("ROME!", "rome", True),
        ("\n\nRome\nParis", "Rome", True),
        ("Paris\nRome", "Rome", False),
        ("The Beatles", "Beatles", True),
        ("Beatles", "The Beatles", True),
        ("in the Hague", "The Hague", True),
        ("The Hague", "the Hague", True),
        ("The Hague", "Hague", True),
        ("It is a dog.", "a dog", True),
        ("A dog.", "dog", True),
        ("Dog.", "a dog", True),
        ("An egg", "the egg", True),
        ("A minor", "A minor", True),
        ("the key of a minor", "A minor", True),
        ("E minor", "A minor", False),
        ("minor", "A minor", False),
        ("B positive", "A positive", False),
        ("An American in Paris", "An American in Paris", True),
        ("it is an American in Paris", "An American in Paris", True),
        ("Every American in Paris", "An American in Paris", False),
        ("A great one", "A", True),
        ("a great one", "A", False),
        ("A and B", "A", True),
        ("A. Then B", "A", True),
        ("“A”", "A", True),
        ("The The are", "The The", True),
        ("李宏毅。他在台灣大學", "李宏毅", True),
        ("是李宏毅", "李宏毅", True),
        ("李宏", "李宏毅", False),
        ("５０８公尺", "508公尺", True),
        ("1508公尺", "508公尺", False),
        ("St. Louis", "St. Louis", True),
        ("C", "C++", False),
        ("", "Rome", False),
        ("Rome", "", False),
        ("Rome", ".", False),
        ("It is so", "IT", False),
        ("in the IT department", "IT", True),
        ("let us go", "US", False),
        ("the US, I think", "the US", True),
        ("in the U.S", "U.S.", True),
        ("u.s.", "U.S.", False),
        ("Who else", "WHO", False),
        ("net income", ".NET", False),
        ("It is .NET.", ".NET", True),
        (".NET", "“.NET”", True),
        ("the .NET framework", ".NET", True),
        ("c++", "C++", False),
        ("ac/dc", "AC/DC", False),
        ("NATO", "Nato", True),
        ("Αθηνα", "ΑΘΗΝΑ", False),
        ("...Rome", "...Rome", True),
        ("Rome", " .Rome", False),
        ("$80,000 per year", "$80", False),
        ("$80, and no more", "$80", True),
        ("-5 degrees", "5", False),
    ],
)
def test_an_answer_is_given_when_the_first_line_mentions_it_as_whole_words(
    answer: str, expected: str, right: bool
) -> None:
    assert gives(answer, expected) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Paris, not Rome", False), ("Rome, not Paris", True), ("Rome", True), ("Paris", False), ("Paris Rome\nx", False)],
)
def test_the_old_answer_must_not_come_first(answer: str, right: bool) -> None:
    assert gives(answer, "Rome", rival="Paris") is right


@pytest.mark.parametrize(
    ("answer", "expected", "rival", "right"),
    [
        ("It is Python", "Python", "IT", True),
        ("tell us: Canada", "Canada", "US", True),
        ("the US, then Canada", "Canada", "US", False),
        ("net of tax it is Java", "Java", ".NET", True),
    ],
)
def test_a_word_in_small_letters_is_no_rival_in_capitals(answer: str, expected: str, rival: str, right: bool) -> None:
    assert gives(answer, expected, rival) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("South Korea.", False), ("South", True), ("the South", True), ("South, not South Korea", True), ("Korea", False)],
)
def test_an_answer_that_begins_the_old_one_is_given_only_alone(answer: str, right: bool) -> None:
    assert gives(answer, "South", rival="South Korea") is right
    old = gives_any(answer, ("South Korea", "Korea"), ("South", "the South Side"))
    assert old is ("Korea" in answer and not right)


@pytest.mark.parametrize(
    ("answer", "expected", "rival", "right"),
    [
        ("E minor", "A minor", "C minor", False),
        ("A minor", "A minor", "C minor", True),
        ("A minor", "minor", "A minor", False),
        ("A minor", "A minor", "minor", True),
        ("a minor", "minor", "dog", True),
    ],
)
def test_a_capital_article_belongs_to_the_answer_that_it_begins(
    answer: str, expected: str, rival: str, right: bool
) -> None:
    assert gives(answer, expected, rival) is right


def test_a_rival_that_is_part_of_the_answer_does_not_spoil_it() -> None:
    assert gives("New York City", "New York City", rival="New York")


@pytest.mark.parametrize(
    ("answer", "before", "same"),
    [
        ("Berlin.", " berlin", True),
        ("the yen", "yen", True),
        ("Berlin\nmore", "Berlin\nother", True),
        ("Berlin and more", "Berlin", False),
        ("", "", True),
        ("", "Berlin", False),
        ("柏林。", "柏林", True),
    ],
)
def test_unchanged_compares_normalised_first_lines(answer: str, before: str, same: bool) -> None:
    assert unchanged(answer, before) is same


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("<think>\nOkay, France.\n</think>\n\nLyon", "Lyon"),
        ("Okay, France.\n</think>\n\nLyon\nand more", "Lyon"),  # the template began it
        ("<think>\n\n</think>\n\nLyon", "Lyon"),
        ("[THINK]Paris?[/THINK]Lyon", "Lyon"),
        ("<|START_THINKING|>Paris?<|END_THINKING|>Lyon", "Lyon"),
        ("<think>\nIs it Lyon", ""),
        ("<think>a</think><think>Is it Lyon", ""),
        ("The mark <think> begins it", "The mark <think> begins it"),
        ("", ""),
    ],
)
def test_an_answer_comes_after_the_thinking(answer: str, line: str) -> None:
    assert first_line(answer) == line
    assert gives(answer, "Lyon") is (line == "Lyon")


@pytest.mark.parametrize(
    ("answer", "before", "same"),
    [
        ("<think>\nA\n</think>\n\nParis", "<think>\nB\n</think>\n\nLyon", False),
        ("<think>\nA\n</think>\n\nParis", "<think>\nB\n</think>\n\nparis.", True),
        ("<think>\nA\n</think>\n\nParis", "Paris", True),
        ("<think>\nA", "<think>\nB", False),
        ("<think>\nA", "<think>\nA", True),
        ("<think>\nA", "", False),
    ],
)
def test_thinking_is_no_part_of_an_answer_that_stays(answer: str, before: str, same: bool) -> None:
    assert unchanged(answer, before) is same


def test_the_first_line_skips_blank_ones() -> None:
    assert first_line("\n \n  Rome \nParis") == "Rome"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("International Business Machines", True),
        ("IBM, formerly a part of Xerox", True),
        ("Xerox, not IBM", False),
        ("the Xerox Corporation, later IBM", False),
        ("Apple", False),
    ],
)
def test_any_accepted_answer_counts_and_any_name_of_the_old_one_is_a_rival(answer: str, right: bool) -> None:
    assert gives_any(answer, ("IBM", "International Business Machines"), ("Haloid", "Xerox")) is right


def test_without_an_accepted_answer_nothing_is_given() -> None:
    assert not gives_any("IBM", ())
