"""The line of a generated text that is judged: the first non-blank one after the thinking."""

from __future__ import annotations

from vllm_edit.text.matching import position
from vllm_edit.text.thinking import after_thinking


def first_line(text: str) -> str:
    """The text's first non-blank line; empty if there is none, as when the thinking does not end."""
    return (after_thinking(text) or "").strip().split("\n")[0].strip()


def can_be_given(answer: str) -> bool:
    """True if a text can give the answer. None gives two lines, a thinking, or punctuation alone."""
    return position(first_line(answer), answer) is not None
