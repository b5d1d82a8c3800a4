"""Half of a surrogate pair: what JSON can hold and no tokenizer reads.

Clients that cut a text after so many UTF-16 units send them. They are refused here, since behind the router each part
fails in its own way, some without an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vllm_edit.errors import EditError
from vllm_edit.serving.bodies import Body, decoded
from vllm_edit.store.names import shown

# Where a raw body may hold one: escaped, as bytes, or in an encoding that has NUL bytes.
_MAY_HOLD = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\0")


def refuse_half_pairs(raw: bytes, body: Body) -> None:
    """`check` of a body that was parsed from `raw`, which is quick to tell that there can be none."""
    if _MAY_HOLD.search(raw):
        check(body)


def check(value: Any, name: str = "") -> None:
    """Look through parsed JSON; also through the arguments of tool calls, which vLLM decodes.

    name: of the value, for the message.

    Raises:
        EditError: with the place of the first half pair.
    """
    if (place := next(_places(value, name), None)) is not None:
        raise EditError(
            f"{shown(place)} has half of a surrogate pair, such as \\ud83d, which is no character; send both halves or "
            "neither"
        )


def _places(value: Any, place: str) -> Iterator[str]:
    """Where in parsed JSON half pairs are, as `messages.0.content`."""
    if isinstance(value, str):
        if _is_cut(value):
            yield place
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _places(item, f"{place}.{number}")
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{place}.{key}" if place else key
            if _is_cut(key):
                yield inner
            yield from _places(item, inner)
            if key == "arguments" and isinstance(item, str):
                yield from _places(decoded(item), inner)


def _is_cut(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
