"""Half of a surrogate pair: what JSON can hold and no tokenizer reads.

Clients that cut a text after so many UTF-16 units send them. They are refused here, since behind the router each part
fails in its own way, some without an answer.
"""

from __future__ import annotations

from typing import Any

from vllm_edit.errors import EditError
from vllm_edit.names import shown
from vllm_edit.serving.bodies import Body, decoded

_SIGNS = (b"\\ud", b"\\uD", b"\xed", b"\0")
"""What a raw body with one has: an escape, its first byte in UTF-8, or the NUL bytes of UTF-16 and UTF-32."""


def refuse_half_pairs(raw: bytes, body: Body) -> None:
    """`check` of a body that was parsed from `raw`, which is quick to tell that there can be none."""
    if any(sign in raw for sign in _SIGNS):
        check(body)


def check(value: Any, name: str = "") -> None:
    """Look through parsed JSON; also through the arguments of tool calls, which vLLM decodes.

    name: of the value, for the message.

    Raises:
        EditError: with the place of the first half pair.
    """
    if (place := _place(value)) is not None:
        where = ".".join(filter(None, (name, *place)))
        raise EditError(
            f"{shown(where)} has half of a surrogate pair, such as \\ud83d, which is no character; send both halves or "
            "neither"
        )


def _place(value: Any) -> tuple[str, ...] | None:
    """The way to the first half pair in parsed JSON: names of fields, and places in lists."""
    if isinstance(value, str):
        return () if _is_cut(value) else None
    if isinstance(value, list):
        for number, item in enumerate(value):
            if (rest := _place(item)) is not None:
                return (str(number), *rest)
    elif isinstance(value, dict):
        for key, item in value.items():
            rest = () if _is_cut(key) else _place(item)
            if rest is None and key == "arguments" and isinstance(item, str):
                rest = _place(decoded(item))
            if rest is not None:
                return (key, *rest)
    return None


def _is_cut(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
