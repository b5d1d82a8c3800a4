"""The public Python interface: names that are imported on first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

import vllm_edit
from tests.store.example import compiled, moment, site
from vllm_edit import Base, Delta, Store
from vllm_edit.deltas.low_rank import LowRank
from vllm_edit.errors import Corrupt, EditError, NotFound, Unavailable

UNKNOWN = f"zzz@{'0' * 32}"


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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", site(), moment())


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda _: Base.load("atlas", device="cuda:99"), EditError),
        (lambda _: Base.load("atlas", device="foo"), EditError),
        (lambda _: Base.load("atlas", device="meta"), EditError),
        (lambda _: Delta({"m": LowRank(torch.ones(2, 1), torch.ones(1, 2))}).truncate(0), EditError),
        (lambda _: Delta({"m": LowRank(torch.ones(2, 1), torch.ones(1, 2))}).tensors(torch.int8), EditError),
        (lambda _: Store.create("/dev/null/store", site(), moment()), Unavailable),
        (lambda store: store.add_record(UNKNOWN, "report", {}), NotFound),
        (lambda store: store.records("zzz"), NotFound),
        (lambda store: store.records(UNKNOWN, "a kind"), EditError),
        (lambda store: store.document("pol"), EditError),
        (lambda store: store.demonstrations(UNKNOWN), NotFound),
        (lambda store: store.unit(UNKNOWN, UNKNOWN), NotFound),
        (lambda store: store.unit(store.save(compiled()), UNKNOWN), Corrupt),
        (lambda store: store.adapter_files(UNKNOWN), NotFound),
        (lambda store: store.adapter_folder(UNKNOWN), NotFound),
        (lambda store: store.adapter_id(UNKNOWN), NotFound),
    ],
)
def test_a_call_raises_the_error_that_its_documentation_names(
    call: Callable[[Store], object], error: type[EditError], store: Store
) -> None:
    with pytest.raises(error) as caught:
        call(store)
    assert (type(caught.value), str(caught.value).count("\n")) == (error, 0)
    assert not (Path(store.url) / "records" / UNKNOWN).exists()
