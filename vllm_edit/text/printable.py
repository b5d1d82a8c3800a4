"""Makes text safe for a terminal: text from clients and files may contain control sequences."""

from __future__ import annotations

import re
from types import MappingProxyType

_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0 with ESC, DEL, and C1, which some terminals obey in UTF-8 too
    "\u2028\u2029"  # separators of lines and paragraphs
    "\u202a-\u202e\u2066-\u2069"  # overrides of the direction of writing: they show text in another order
    "\ud800-\udfff"  # halves of pairs, which no encoding writes
    "]"
)
_NAMED = MappingProxyType({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def printable(text: str, keep: str = "") -> str:
    """The text with each control character as an escape (`\\x1b`, `\\u202e`), but those in `keep`."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def printable_json(document: str) -> str:
    """Escape control characters in a JSON document; its meaning does not change."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", document)


def _escape(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    return f"\\x{ord(character):02x}" if ord(character) < 0x100 else f"\\u{ord(character):04x}"
