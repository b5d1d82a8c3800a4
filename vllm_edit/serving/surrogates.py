"""Refuses unpaired surrogates, which JSON can hold but no tokenizer accepts.

Clients that cut a text at a number of UTF-16 units send them. Behind the router each component would fail in its own
way, some without a response.
"""

from __future__ import annotations

from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONValue
from vllm_edit.names import shown
from vllm_edit.serving.bodies import Body, decoded

_SIGNS = (b"\\ud", b"\\uD", b"\xed", b"\0")
"""Bytes of a raw body that may hold one: an escape, its first byte in UTF-8, or the NUL bytes of UTF-16 and UTF-32."""


def refuse_unpaired_surrogates(raw: bytes, body: Body) -> None:
    """`check` a body, unless its `raw` bytes quickly show that it has no unpaired surrogate."""
    if any(sign in raw for sign in _SIGNS):
        check(body)


def check(value: JSONValue, name: str = "") -> None:
    """Search parsed JSON, including the arguments of tool calls, which vLLM decodes.

    Args:
        value: parsed JSON.
        name: the value's name, for the message.

    Raises:
        EditError: the value has an unpaired surrogate; the message gives the path of the first.
    """
    if (place := _place(value)) is not None:
        where = ".".join(filter(None, (name, *place)))
        raise EditError(
            f"{shown(where)} has half of a surrogate pair, such as \\ud83d, which is no character; send both halves or "
            "neither"
        )


def _place(value: JSONValue) -> tuple[str, ...] | None:
    """The path to the first unpaired surrogate in parsed JSON: field names and list indexes; None if there is none."""
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
