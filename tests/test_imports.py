"""The packages' order, read from every `import` in the code: also those in functions and for type checkers only."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vllm_edit

ROOT = Path(vllm_edit.__file__).parent
WITHOUT_TORCH = ("text", "cli", "engine", "registry", "rollout")
WITHOUT_TORCH += ("artefacts.manifest", "artefacts.site", "artefacts.checkpoint")
"""Packages and modules that are loaded before anything is computed: by every command, and by servers."""
FRONTS = ("cli", "serving.admin", "serving.console")
"""Their files are named after the noun of a command, route or page, which is also the name of the file that it uses."""
OF_ONE_NAME: dict[str, str] = {
    "edits": "each editing method has the step from edits to a delta in `edits`",
}
"""Other file names that two modules have, with the reason."""


@dataclass(frozen=True)
class Import:
    """name: dotted, of a module or of an object in it. eager: it runs when the module is loaded."""

    name: str
    eager: bool


class Code:
    """The modules below a folder, by dotted name without the package's own, and what each one imports."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """`registry.api_keys` → its file; a package by its `__init__.py`."""
        found = {}
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        del found[""]
        return found

    @cached_property
    def imports(self) -> Mapping[str, frozenset[Import]]:
        return {name: frozenset(self._imports(path)) for name, path in self.files.items()}

    def own(self, name: str, eager: bool = False) -> set[str]:
        """The modules of the package that the module `name` imports. eager: only when it is loaded."""
        imported = (found.name for found in self.imports[name] if found.eager or not eager)
        inside = {found.removeprefix(f"{self.root.name}.") for found in imported}
        modules = {found if found in self.files else found.rpartition(".")[0] for found in inside}
        return (modules & self.files.keys()) - {name}

    def reached(self, name: str, eager: bool = False) -> set[str]:
        """The modules of the package that `name` needs, and it; with the packages that they are in."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            module = waiting.pop()
            if module in seen or module not in self.files:
                continue
            seen.add(module)
            waiting += [*self.own(module, eager), module.rpartition(".")[0]]
        return seen

    def foreign(self, name: str, eager: bool = False) -> set[str]:
        """The other distributions' top packages that the module itself imports."""
        return {found.name.partition(".")[0] for found in self.imports[name] if found.eager or not eager}

    def siblings(self, folder: str) -> dict[str, set[str]]:
        """A folder's files and folders, and which of each other they import, all that is in a folder taken together."""
        edges: dict[str, set[str]] = {}
        for module in self.files:
            if (child := _child(folder, module)) is None:
                continue
            others = {_child(folder, imported) for imported in self.own(module)}
            edges.setdefault(child, set()).update(other for other in others if other not in (None, child))
        return edges

    def _imports(self, path: Path) -> Iterator[Import]:
        yield from self._of(ast.parse(path.read_text(encoding="utf-8")).body, eager=True)

    def _of(self, body: Iterable[ast.AST], eager: bool) -> Iterator[Import]:
        for node in body:
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, eager) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                assert node.level == 0, "imports are absolute"
                yield from (Import(f"{node.module}.{alias.name}", eager) for alias in node.names)
            else:
                later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types(node)
                yield from self._of(ast.iter_child_nodes(node), eager and not later)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _child(folder: str, module: str) -> str | None:
    """The part of `module` right below `folder`, if it is there."""
    prefix = f"{folder}." if folder else ""
    return module.removeprefix(prefix).partition(".")[0] if module.startswith(prefix) else None


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle, in its order; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


CODE = Code(ROOT)
FOLDERS = sorted({"", *(name for name, path in CODE.files.items() if path.name == "__init__.py")})


def test_no_files_import_each_other_in_a_circle() -> None:
    assert len(CODE.files) > 100
    assert circle({name: CODE.own(name) for name in CODE.files}) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_files_and_folders_have_an_order(folder: str) -> None:
    assert circle(CODE.siblings(folder)) == []


@pytest.mark.parametrize(("package", "other"), [("editing", "serving"), ("serving", "editing")])
def test_editing_and_serving_never_meet(package: str, other: str) -> None:
    reached = {name: CODE.reached(name) for name in CODE.files if _child("", name) == package}
    assert reached
    assert {
        name: met for name, found in reached.items() if (met := [item for item in found if item.startswith(other)])
    } == {}


def test_only_engine_and_serving_import_vllm() -> None:
    importing = {_child("", name) for name in CODE.files if "vllm" in CODE.foreign(name)}
    assert importing == {"engine", "serving"}


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_loading_it_loads_no_torch(package: str) -> None:
    modules = [name for name in CODE.files if name == package or name.startswith(f"{package}.")]
    assert modules
    loading = {
        name: heavy
        for name in modules
        if (
            heavy := [
                module
                for module in CODE.reached(name, eager=True)
                if CODE.foreign(module, True) & {"torch", "transformers"}
            ]
        )
    }
    assert loading == {}


def test_root_modules_import_only_root_modules_and_text() -> None:
    leaves = {name for name, path in CODE.files.items() if path.parent == ROOT and name != "__main__"}
    assert {"errors", "patch"} < leaves
    below = {leaf: {_child("", imported) for imported in CODE.reached(leaf)} - leaves for leaf in leaves}
    assert {leaf: packages for leaf, packages in below.items() if packages - {"text"}} == {}


def test_text_imports_only_errors_and_itself() -> None:
    modules = [name for name in CODE.files if _child("", name) == "text"]
    assert {_child("", imported) for name in modules for imported in CODE.reached(name)} == {"text", "errors"}


def test_two_files_have_one_name_only_as_command_or_route_and_what_it_calls() -> None:
    modules: dict[str, list[str]] = {}
    for name, path in CODE.files.items():
        if not path.stem.startswith("__") and name.rpartition(".")[0] not in FRONTS:
            modules.setdefault(path.stem, []).append(name)
    assert {stem: found for stem, found in modules.items() if len(found) > 1 and stem not in OF_ONE_NAME} == {}
    assert [stem for stem in OF_ONE_NAME if len(modules[stem]) < 2] == []


def test_a_circle_is_found_also_in_a_function_and_for_types(tmp_path: Path) -> None:
    package = tmp_path / "made"
    (package / "low").mkdir(parents=True)
    for path, text in {
        "__init__.py": "",
        "low/__init__.py": "",
        "low/a.py": "def f():\n    from made import high\n",
        "low/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import made.low.c\n",
        "low/c.py": "import torch\nfrom made.low.b import x\n",
        "high.py": "from made.low import b\n",
    }.items():
        (package / path).write_text(text)
    code = Code(package)
    assert set(circle({name: code.own(name) for name in code.files})) == {"low.b", "low.c"}
    assert set(circle(code.siblings(""))) == {"low", "high"}
    assert code.reached("high", eager=True) == {"high", "low", "low.b"}
    assert "torch" in code.foreign("low.c", eager=True)
