"""Documents: JSON that a store holds beside its site, each in one file with the digest of its content.

passages.json   ordinary text on which gates measure the drift of perplexity (`gate_texts`)
texts.json      ordinary text that the base generated, on which the site's second moment was measured
pool.json       facts of the tables that the base knows (`vllm_edit.facts.pool`)
tried.json      the sweep's measurements of each candidate for the site
settings.json   digest of the base's settings files (`site.Fingerprint`), for sites that were made without it

No document is part of the site's identity. Each is written once, because gates and evaluations depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from vllm_edit.digest import intact_content, with_digest
from vllm_edit.errors import Corrupt, EditError
from vllm_edit.files import Files
from vllm_edit.json_value import JSONValue

Kind = Literal["passages", "texts", "pool", "tried", "settings"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_FORMS: Mapping[Kind, tuple[type, str]] = MappingProxyType(
    {
        "passages": (list, "a list"),
        "texts": (list, "a list"),
        "pool": (dict, "an object"),
        "tried": (list, "a list"),
        "settings": (str, "a digest"),
    }
)


def path_of(kind: Kind) -> str:
    """The document's file in a store. Raises `EditError` if there is no such kind."""
    if kind not in _FORMS:
        raise EditError(f"expected a document's kind among {', '.join(KINDS)}; got {kind!r}")
    return f"{kind}.json"


def check_document(kind: Kind, content: JSONValue) -> None:
    """Raise `EditError` if there is no such kind, or its content has another form: what is written stays for ever."""
    path, (form, name) = path_of(kind), _FORMS[kind]
    if not isinstance(content, form):
        raise EditError(f"expected {name} for {path}, got {type(content).__name__}")


def write_document(files: Files, kind: Kind, content: JSONValue) -> None:
    text = json.dumps(with_digest(kind, content), indent=1, ensure_ascii=False)
    files.write(path_of(kind), text.encode())


def read_document(files: Files, kind: Kind) -> JSONValue:
    """Return the document's content; None if the store has none.

    Raises:
        Corrupt: the file cannot be read, or does not match the digest in it.
    """
    path = path_of(kind)
    try:
        content: JSONValue = intact_content(files.read(path), kind)
        return content
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Corrupt(f"{path} {error}; restore it from a backup") from error
