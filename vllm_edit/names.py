"""Names of artefacts and tenants. A name is checked against its pattern before it is used in a path or a query."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from rapidfuzz import process

from vllm_edit.digest import DIGEST_LENGTH
from vllm_edit.errors import EditError, NotFound

SHORT_DIGEST = 12  # characters that the CLI shows
MINIMUM_PREFIX = 4  # characters of a digest that may stand for it
LABEL_LENGTH = 128  # characters of who did something, and of what a key is called
REASON_LENGTH = 2000
_SHOWN = 80  # characters of a stranger's text repeated in a message
_NEAREST = 3  # names that "did you mean" suggests

_LABEL = r"[a-z0-9][a-z0-9._-]{0,62}"
_NAME = re.compile(rf"{_LABEL}@[0-9a-f]{{{DIGEST_LENGTH}}}")
_REFERENCE = re.compile(rf"({_LABEL})(?:@([0-9a-f]{{{MINIMUM_PREFIX},{DIGEST_LENGTH}}}))?")
_UNPRINTABLE = ("Cc", "Cs")  # control characters, and halves of a surrogate pair: no text in UTF-8
_NO_LINE = (*_UNPRINTABLE, "Cf", "Zl", "Zp")  # besides, what reorders or hides text, and other ends of a line
_KIND = re.compile(r"[a-z0-9][a-z0-9_]{0,31}")
_ANSWER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(name: str) -> str:
    """Return `name` if it has the full form `<patch>@<digest>`; else raise `NotFound`."""
    if _NAME.fullmatch(name) is None:
        raise NotFound(f"expected a name like capital@{'0' * DIGEST_LENGTH}, got {shown(name)}")
    return name


def check_patch(name: str) -> str:
    """Return `name` if it is a valid name of a patch or composition; else raise `EditError`."""
    if not is_label(name):
        raise EditError(
            f"expected a patch's name of lower-case letters, digits, '.', '_' and '-' (at most 63), got {shown(name)}"
        )
    return name


def check_tenant(name: str) -> str:
    if not is_label(name):
        raise EditError(
            f"expected a tenant's name of lower-case letters, digits, '.', '_' and '-' (at most 63), got {shown(name)}"
        )
    return name


def check_kind(kind: str) -> str:
    if _KIND.fullmatch(kind) is None:
        raise EditError(f"expected a record's kind like 'compile' or 'gate', got {shown(kind)}")
    return kind


def is_label(text: str) -> bool:
    """True if a patch, a tenant or a rollout could have this name, so that a query is worthwhile."""
    return re.fullmatch(_LABEL, text) is not None


def is_answer_id(text: str) -> bool:
    """True if an answer could have this id, so that a query is worthwhile."""
    return _ANSWER_ID.fullmatch(text) is not None


def check_note(text: str, what: str, limit: int) -> str:
    """Return a person's text about a change (who, why) without spaces around it; it may be empty, but not blank.

    Raises:
        EditError: it is blank, too long, or has characters that no database can store.
    """
    unprintable = any(unicodedata.category(character) in _UNPRINTABLE and character not in "\n\t" for character in text)
    if len(text) > limit or unprintable:
        raise EditError(f"expected {what} of at most {limit} printable characters, got {shown(text)} ({len(text)})")
    if text and not text.strip():
        raise EditError(f"expected {what}, got only spaces; write it, or leave it out")
    return text.strip()


def is_one_line(text: str) -> bool:
    """True if `text` displays unchanged: no control or format characters, no line breaks."""
    return all(unicodedata.category(character) not in _NO_LINE for character in text)


def split_name(name: str) -> tuple[str, str]:
    """(patch, digest) of a full name."""
    patch, _, digest = check_name(name).partition("@")
    return patch, digest


def short(name: str) -> str:
    """The name with its digest shortened for display: `capital@4f1c09aa31d2`."""
    patch, _, digest = name.partition("@")
    return f"{patch}@{digest[:SHORT_DIGEST]}"


def resolve(text: str, newest_first: list[str]) -> str:
    """Resolve `text` to one name: a full name, a patch (its newest version), or a patch with the start of a digest.

    Raises:
        NotFound: no name matches; `nearest` holds existing names.
        EditError: the start of the digest matches several names.
    """
    reference = _REFERENCE.fullmatch(text)
    if reference is not None:
        patch, prefix = reference.groups()
        found = [name for name in newest_first if name.startswith(f"{patch}@{prefix or ''}")]
        if len(found) == 1 or (found and prefix is None):
            return found[0]
        if found:
            raise EditError(f"{text} fits {len(found)} names: {', '.join(found)}; give more of the digest")
    raise NotFound(f"no compiled patch {shown(text)}", nearest(text, newest_first))


def nearest(text: str, choices: Iterable[str]) -> list[str]:
    """The few choices most similar to `text`, best first, for "did you mean". Only the part before an `@` is compared:
    similar digests mean nothing. With a digest in `text` all of a patch's names are near, else the first of each patch.
    """
    by_patch: dict[str, list[str]] = {}
    for choice in choices:
        by_patch.setdefault(choice.partition("@")[0], []).append(choice)
    wanted, at, _ = text[:_SHOWN].partition("@")
    found = process.extract(wanted, by_patch.keys(), limit=_NEAREST, score_cutoff=50)
    return [name for patch, _, _ in found for name in by_patch[patch][: None if at else 1]][:_NEAREST]


def shown(text: str) -> str:
    """Text from outside, quoted, escaped and cut so that a message stays one short line."""
    return ascii(text) if len(text) <= _SHOWN else ascii(text[:_SHOWN]) + "…"
