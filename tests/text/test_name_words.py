"""Where the words of a name are separated, and which one is the last."""

from __future__ import annotations

import pytest

from vllm_edit.text.name_words import last_word, separators


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("Eiffel Tower", "tower"),
        ("Rolls-Royce", "royce"),
        ("New York City", "city"),
        ("The Hague", ""),  # an article is not a word of the name
        ("Paris", ""),
        ("C - D", ""),  # a dash between spaces is no separator
        ("東京", ""),
        ("", ""),
    ],
)
def test_the_last_word_of_a_name_of_several_words(name: str, last: str) -> None:
    assert last_word(name) == last


def test_words_are_separated_at_spaces_and_at_hyphens() -> None:
    assert separators("Jean-Luc Picard") == [4, 8]
    assert separators("Picard") == []
