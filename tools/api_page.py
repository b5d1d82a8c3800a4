"""Writes docs/api.md: the public names of the package, from their signatures and docstrings. Run it with `make api`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import griffe

import vllm_edit

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
INTRO = """# Python interface

Import these names from `vllm_edit`; each is loaded on its first use. `make api` writes this page from the docstrings.
An edit changes a weight by ΔW [d_out, d_in] = B [d_out, r] · A [r, d_in]. Settings of methods are in
[methods.md](methods.md), [mend.md](mend.md) and [knowledge_editor.md](knowledge_editor.md), the words of a patch file
in [patches.md](patches.md).
"""
WIDTH = 110
"""Maximum length of a signature in one line."""
TITLES = {
    "parameters": "Args",
    "attributes": "Attributes",
    "returns": "Returns",
    "yields": "Yields",
    "raises": "Raises",
}
"""The titles of a docstring's sections, by griffe's names for them."""


def interface() -> dict[str, Any]:
    """The public names and griffe's objects for them, in the order of `__all__`."""
    package = griffe.load(
        "vllm_edit", search_paths=[ROOT], docstring_parser="google", docstring_options={"returns_multiple_items": False}
    )
    return {name: package[name].final_target for name in vllm_edit.__all__}


def page() -> str:
    """The whole page in Markdown."""
    objects = interface()
    listing = [f"| [`{name}`](#{name.lower()}) | {_summary(found)} |" for name, found in objects.items()]
    parts = [INTRO, "\n".join(["| name | |", "|---|---|", *listing])]
    for name, found in objects.items():
        parts += [f"## `{name}`", *(_class(found) if found.is_class else _function(found, name))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def members(found: Any) -> tuple[list[Any], list[Any]]:
    """The public attributes (fields and properties) and the public methods of a class, in the order of the code."""
    own = [each for name, each in found.members.items() if not name.startswith("_")]
    described = _described(found)
    attributes = [each for each in own if each.is_attribute and (each.docstring or each.name in described)]
    return attributes, [each for each in own if each.is_function]


def _class(found: Any) -> Iterator[str]:
    if init := found.members.get("__init__"):
        yield _signature(init, found.name)
    yield from _docstring(found, left_out="attributes")
    if init:
        yield from _docstring(init)
    attributes, methods = members(found)
    if attributes:
        described = _described(found)
        lines = [_item(_typed(each), described.get(each.name) or each.docstring.value) for each in attributes]
        yield "\n".join(["Attributes:\n", *lines])
    for method in methods:
        yield f"### `{found.name}.{method.name}`"
        yield from _function(method, method.name)


def _function(found: Any, name: str) -> Iterator[str]:
    yield _signature(found, name)
    yield from _docstring(found)


def _signature(found: Any, name: str) -> str:
    """The call in a block of code; one line for each parameter if it is long."""
    if "classmethod" in found.labels:
        name = f"{found.parent.name}.{name}"
    text = found.signature(name=name, return_type=found.name != "__init__")
    given, _, returned = text.removeprefix(f"{name}(").rpartition(")")
    parameters = [parameter for parameter in _at_commas(given) if parameter and not parameter.startswith("_")]
    text = f"{name}({', '.join(parameters)}){returned}"
    if len(text) > WIDTH:
        lines = "".join(f"    {parameter},\n" for parameter in parameters)
        text = f"{name}(\n{lines}){returned}"
    return f"```py\n{text}\n```"


def _at_commas(text: str) -> Iterator[str]:
    """Parts between commas that are not inside brackets."""
    depth = start = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            yield text[start:place].strip()
            start = place + 1
    yield text[start:].strip()


def _docstring(found: Any, left_out: str = "") -> Iterator[str]:
    for section in _sections(found):
        kind = section.kind.value
        if kind == "text":
            yield section.value
        elif kind == "admonition":
            yield f"{section.title}:\n\n```pycon\n{section.value.description}\n```"
        elif kind != left_out:
            items = [
                _item(getattr(item, "name", "") or str(item.annotation), item.description) for item in section.value
            ]
            yield "\n".join([f"{TITLES[kind]}:\n", *items])


def _item(name: str, text: str) -> str:
    return f"- `{name}`: {' '.join(text.split())}"


def _typed(attribute: Any) -> str:
    """`name: type`, for fields with their default."""
    typed = f"{attribute.name}: {attribute.annotation}" if attribute.annotation else attribute.name
    default = "" if attribute.value is None or "(" in str(attribute.value) else f" = {attribute.value}"
    return f"{typed}{default}"


def _described(found: Any) -> Mapping[str, str]:
    """What the docstring of a class says of its attributes."""
    items = [item for section in _sections(found) if section.kind.value == "attributes" for item in section.value]
    return {item.name: item.description for item in items}


def _sections(found: Any) -> list[Any]:
    return list(found.docstring.parsed) if found.docstring else []


def _summary(found: Any) -> str:
    """The first sentence of a docstring, in one line."""
    return " ".join(found.docstring.value.split("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
