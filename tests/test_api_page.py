"""docs/api.md is what the docstrings say, and they say everything."""

from __future__ import annotations

from typing import Any

import pytest

from tools.api_page import PAGE, interface, members, page


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    return interface()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run make api"


def test_every_public_name_is_described(objects: dict[str, Any]) -> None:
    methods = [method for found in objects.values() if found.is_class for method in members(found)[1]]
    assert [found.path for found in [*objects.values(), *methods] if not found.docstring] == []


def test_every_parameter_is_described(objects: dict[str, Any]) -> None:
    functions = [found for found in objects.values() if found.is_function]
    for found in objects.values():
        if found.is_class:
            functions += members(found)[1]
            written = found.members.get("__init__")
            functions += [written] if written is not None and written.docstring else []
    missing = {found.path: lacking for found in functions if (lacking := _parameters(found) - _described(found))}
    assert missing == {}


def test_every_field_is_described(objects: dict[str, Any]) -> None:
    classes = [found for found in objects.values() if found.is_class]
    fields = [(found, each) for found in classes for name, each in found.members.items() if _is_field(name, each)]
    assert len(fields) > 50
    assert [field.path for found, field in fields if field not in members(found)[0]] == []


def _is_field(name: str, member: Any) -> bool:
    """True for properties, and for what a class declares with a type."""
    declared = "instance-attribute" in member.labels and member.annotation is not None
    return not name.startswith("_") and member.is_attribute and ("property" in member.labels or declared)


def _parameters(found: Any) -> set[str]:
    return {parameter.name for parameter in found.parameters} - {"self", "cls"}


def _described(found: Any) -> set[str]:
    sections = found.docstring.parsed if found.docstring else []
    return {item.name for section in sections if section.kind.value == "parameters" for item in section.value}
