"""Texts in messages: quoted, and shortened if they are long."""

from __future__ import annotations


def quoted(text: str) -> str:
    """The text in quotes, for a message; of more than 80 characters only its first 50 and its last 26."""
    return repr(text if len(text) <= 80 else f"{text[:50].rstrip()} … {text[-26:].lstrip()}")


def change(prompt: str, target: str) -> str:
    """An edit for messages: its prompt and its new answer."""
    return f"{quoted(prompt)} → {quoted(target)}"
