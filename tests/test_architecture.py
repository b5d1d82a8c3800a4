"""The diagrams of docs/architecture.md name functions and classes that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vllm_edit
from tests.test_imports import CODE

ROOT = Path(vllm_edit.__file__).parent
PAGE = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
DIAGRAMS = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
TABLE = PAGE.split("## Packages")[1].split("## A patch")[0]
ROWS = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in TABLE.splitlines() if line.startswith("| `")]
NAMES = sorted({name for diagram in DIAGRAMS for name in re.findall(r'\["([^"]+)"\]', diagram)})


def is_defined(name: str, root: Path = ROOT) -> bool:
    """True if `name`, dotted below the package, is a function, a class or a method of a module. Nothing is imported."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        file = root.joinpath(*parts[:split]).with_suffix(".py")
        if file.exists():
            body = ast.parse(file.read_text(encoding="utf-8")).body
            for part in parts[split:]:
                found = [node for node in body if getattr(node, "name", None) == part]
                if not found:
                    return False
                body = getattr(found[0], "body", [])
            return True
    return False


def test_there_are_three_diagrams_and_each_box_has_a_name() -> None:
    assert len(DIAGRAMS) == 3
    assert all(len(re.findall(r"\[", diagram)) > 8 for diagram in DIAGRAMS)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_diagram_exists(name: str) -> None:
    assert is_defined(name)


@pytest.mark.parametrize("name", ["patch.Patch.nothing", "nothing.Patch", "store.store.Store.save.inner"])
def test_a_name_that_does_not_exist_is_noticed(name: str) -> None:
    assert not is_defined(name)


def test_the_table_has_every_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= {name for row in ROWS for name in row}


def test_no_package_imports_a_package_above_it_in_the_table() -> None:
    row_of = {name: number for number, row in enumerate(ROWS) for name in row}
    upward = [
        (name, imported)
        for name, others in CODE.siblings("").items()
        for imported in others
        if row_of.get(imported, len(ROWS)) < row_of.get(name, -1)
    ]
    assert upward == []
