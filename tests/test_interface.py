"""The public Python interface: names that are imported on first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import vllm_edit


@pytest.mark.parametrize("name", vllm_edit.__all__)
def test_a_name_is_the_one_of_its_module(name: str) -> None:
    assert getattr(vllm_edit, name) is getattr(import_module(vllm_edit._HOME[name]), name)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(vllm_edit.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == vllm_edit._HOME
    assert sorted(vllm_edit._HOME) == sorted(vllm_edit.__all__)


def test_importing_the_package_and_declaring_a_patch_load_neither_torch_nor_vllm() -> None:
    program = (
        "import sys, vllm_edit\n"
        "edit = vllm_edit.Edit(prompt='The capital of France is', subject='France', target_new='Lyon')\n"
        "vllm_edit.Patch(name='capital', edits=(edit,))\n"
        "print([name for name in ('torch', 'transformers', 'vllm') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_unknown_name_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'compile'; it offers Bank, Base, .*evaluate"):
        vllm_edit.compile  # noqa: B018
