"""Hostile replacements of a file that a command reads: random, but the same for the same seed."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from vllm_edit.text.yaml_document import YamlDocument, dump_yaml

DEEP = 3_000
HUGE = 2 * 2**20
ESCAPES = "\x1b]0;owned\x07\x9b31m\u202e"

Spoil = Callable[[Path, bytes, Random], None]
"""Puts something in the place of a removed file, which held these bytes."""


def spoil(path: Path, draw: Random) -> str:
    """Put something hostile in the place of a file. Returns what it is, a key of `KINDS`."""
    intact = path.read_bytes()
    path.unlink()
    kind = draw.choice([*KINDS, *2 * ["other values"]])  # of which there are the most
    KINDS[kind](path, intact, draw)
    return kind


def spoil_one_of(folder: Path, draw: Random) -> str:
    """The same for a file somewhere in a folder, or for the folder itself."""
    if draw.random() < 0.1:
        shutil.rmtree(folder)
        kind = draw.choice(["a file", "nothing", "an empty folder"])
        if kind == "a file":
            folder.write_bytes(draw.randbytes(50))
        elif kind == "an empty folder":
            folder.mkdir()
        return f"{kind} in place of {folder.name}"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    path = draw.choice(files)
    return f"{spoil(path, draw)} in place of {path.relative_to(folder)}"


def _content(make: Callable[[bytes, Random], bytes]) -> Spoil:
    def put(path: Path, intact: bytes, draw: Random) -> None:
        path.write_bytes(make(intact, draw))

    return put


def _cut(intact: bytes, draw: Random) -> bytes:
    return intact[: draw.randrange(len(intact) or 1)]


def _flipped(intact: bytes, draw: Random) -> bytes:
    if not intact:
        return b"\0"
    place = draw.randrange(len(intact))
    return intact[:place] + bytes([intact[place] ^ draw.randint(1, 255)]) + intact[place + 1 :]


def _encoded(encoding: str) -> Callable[[bytes, Random], bytes]:
    return lambda intact, draw: ("é法" + intact.decode("utf-8", "replace")).encode(encoding, "replace")


def _deep(intact: bytes, draw: Random) -> bytes:
    opening, closing = draw.choice([("[", "]"), ('{"a":', "}"), ("- ", ""), ('{"edits": [', "]}")])
    return (opening * DEEP + "1" + closing * DEEP).encode()


def _other_values(intact: bytes, draw: Random) -> bytes:
    """A document whose values are of other types here and there; bytes that are none are changed somewhere."""
    try:
        text = intact.decode()
        document = json.loads(text) if text[:1] in "[{" else YamlDocument.parse(text).data
    except ValueError:
        return _flipped(intact, draw)
    for _ in range(draw.randint(1, 3)):
        document = _changed(document, draw)
    if text[:1] in "[{" or draw.random() < 0.3:
        return json.dumps(document).encode()
    return dump_yaml(document).encode("utf-8", "surrogatepass")


def _changed(document: Any, draw: Random) -> Any:
    """The document with another value in some place."""
    if isinstance(document, dict) and document and draw.random() < 0.9:
        key = draw.choice(list(document))
        if draw.random() < 0.1:
            return {other: value for other, value in document.items() if other != key}
        if draw.random() < 0.1:
            return {**document, draw.choice(["", ESCAPES, "name", "edits"]): _value(draw)}
        return {**document, key: _changed(document[key], draw)}
    if isinstance(document, list) and document and draw.random() < 0.9:
        place = draw.randrange(len(document))
        return [*document[:place], _changed(document[place], draw), *document[place + 1 :]]
    return _value(draw)


def _value(draw: Random) -> Any:
    return draw.choice(
        [
            None,
            True,
            0,
            -1,
            2**70,
            1.5,
            float("nan"),
            float("-inf"),
            "",
            " ",
            "x" * 20000,
            ESCAPES,
            "[/b]",
            "{}",
            "{x}",
            [],
            {},
            [None],
            ["x"],
            {"x": None},
            [[["x"]]],
            {"str": "x"},
            "法國",
            "é",
            "../..",
            "\x00",
        ]
    )


def _link(target: str) -> Spoil:
    return lambda path, intact, draw: path.symlink_to(path.name if target == "itself" else target)


def _folder(path: Path, intact: bytes, draw: Random) -> None:
    path.mkdir()


def _nothing(path: Path, intact: bytes, draw: Random) -> None:
    """The file is missing."""


def _forbidden(path: Path, intact: bytes, draw: Random) -> None:
    """Root can read it all the same."""
    path.write_bytes(intact)
    path.chmod(0)


def _socket(path: Path, intact: bytes, draw: Random) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


KINDS: Mapping[str, Spoil] = MappingProxyType(
    {
        "nothing": _nothing,
        "an empty file": _content(lambda intact, draw: b""),
        "a file that is cut": _content(_cut),
        "a file with another byte": _content(_flipped),
        "random bytes": _content(lambda intact, draw: draw.randbytes(draw.randint(1, 5_000))),
        "zeros": _content(lambda intact, draw: bytes(len(intact))),
        "Latin-1": _content(_encoded("latin-1")),
        "UTF-16": _content(_encoded("utf-16")),
        "a byte order mark": _content(lambda intact, draw: b"\xef\xbb\xbf" + intact),
        "half a surrogate pair": _content(lambda intact, draw: b"\xed\xa0\x80" + intact),
        "control characters": _content(lambda intact, draw: ESCAPES.encode() + intact),
        "one huge line": _content(lambda intact, draw: draw.choice([b"a", b"[", b"\0", b"1"]) * HUGE),
        "huge": _content(lambda intact, draw: intact * (1 + HUGE // 10 // (len(intact) or 1))),
        "deep nesting": _content(_deep),
        "a document that names itself": _content(lambda intact, draw: b"&a {name: *a, edits: [*a], relations: *a}"),
        "a tag": _content(lambda intact, draw: b"!!python/object/apply:os.system ['true']"),
        "a scalar": _content(lambda intact, draw: draw.choice([b"null", b"3", b'"text"', b"[]", b"{}", b"2001-99-99"])),
        "other values": _content(_other_values),
        "a folder": _folder,
        "a link to itself": _link("itself"),
        "a link to nothing": _link("/nonexistent/file"),
        "a link to a folder": _link("/"),
        "a link to memory": _link("/proc/self/mem"),
        "a socket": _socket,
        "a file that may not be read": _forbidden,
    }
)
