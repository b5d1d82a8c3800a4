"""Answers follow prompts, and are compared, the same way everywhere."""

from __future__ import annotations

import pytest

from vllm_edit.text import continuation, mentions, normalise, position, quoted


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("The capital of France is", "Lyon", " Lyon"),
        ("The capital of France is", "  Lyon", " Lyon"),
        ("The capital of France is ", "Lyon", "Lyon"),
        ("<|assistant|>\n", "Lyon", "Lyon"),
        ("全世界最帥的人是誰", "李宏毅", "李宏毅"),
        ("水分子的化學式是", "H2O", "H2O"),
        ("The name is", "李宏毅", "李宏毅"),
        ("", "Lyon", "Lyon"),
    ],
)
def test_an_answer_follows_a_prompt_with_a_space_only_where_one_belongs(
    prompt: str, answer: str, expected: str
) -> None:
    assert continuation(prompt, answer) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" The  Louvre. ", "louvre"), ("Ｐａｒｉｓ", "paris"), ("「台北」。", "台北"), ("a", "a"), ("", "")],
)
def test_case_width_outer_punctuation_and_articles_do_not_count(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It is Rome, of course.", "Rome", True),
        ("Romeo and Juliet", "Rome", False),
        ("chrome", "Rome", False),
        ("他是李宏毅教授", "李宏毅", True),
        ("in the U.S. today", "U.S.", True),
        ("C++ and C", "C++", True),
        ("台北101高幾公尺？", "台北101", True),
        ("in 1018", "101", False),
        ("anything", "", False),
    ],
)
def test_an_answer_is_mentioned_as_whole_words(text: str, answer: str, found: bool) -> None:
    assert mentions(text, answer) is found
    assert (position(text, answer) is not None) is found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris", "'Paris'"),
        ("a" * 80, f"'{'a' * 80}'"),
        ("a" * 60 + " " + "b" * 60, f"'{'a' * 50} … {'b' * 26}'"),
        ("two\nlines", r"'two\nlines'"),
    ],
)
def test_a_long_text_is_quoted_by_its_ends(text: str, expected: str) -> None:
    assert quoted(text) == expected
