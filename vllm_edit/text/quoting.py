"""Texts in messages: quoted, and shortened if they are long."""

from __future__ import annotations


def quoted(text: str, most: int = 80) -> str:
    """The text in quotes, for a message; beyond `most` characters only its beginning and end."""
    if len(text) > most:
        text = f"{text[: most * 2 // 3 - 3].rstrip()} … {text[-(most // 3) :].lstrip()}"
    return repr(text)


def change(prompt: str, target: str) -> str:
    """An edit for messages: its prompt and its new answer."""
    return f"{quoted(prompt)} → {quoted(target)}"
