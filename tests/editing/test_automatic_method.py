"""The method `auto`: the method that a store's site was made for."""

from __future__ import annotations

import pytest

from tests.editing.examples import bench
from tests.knowledge_editor.tiny_editor import editor_for
from tests.memit.examples import layered
from tests.mend.tiny_training import tiny_base
from tests.ultraedit.tiny_statistics import made_for
from vllm_edit.edit import Edit
from vllm_edit.editing.compile import METHODS, compile_patch, method_at
from vllm_edit.editing.mend.network import MendNetwork
from vllm_edit.editing.site_tensors import SiteTensors
from vllm_edit.patch import Patch


def tensors() -> dict[str, SiteTensors]:
    """Method → tensors of a site that is made for it."""
    network = editor_for(tiny_base())
    return {
        "rome": bench().moment,
        "memit": layered().moments,
        "ke": network,
        "mend": MendNetwork(network.shapes, rank=2),
        "ultraedit": made_for(tiny_base()).statistics,
    }


@pytest.mark.parametrize("method", ["rome", "memit", "ke", "mend", "ultraedit"])
def test_auto_is_the_method_whose_tensors_the_site_has(method: str) -> None:
    assert method_at("auto", tensors()[method]) == method
    assert method_at("ft", tensors()[method]) == "ft", "a method that is named stays"


def test_every_kind_of_tensors_has_an_automatic_method() -> None:
    kinds = {kind for method in METHODS.values() for kind in method.needs or ()}
    assert kinds == {type(made) for made in tensors().values()}


def test_a_patch_that_is_compiled_automatically_names_the_method_that_it_got() -> None:
    made = layered()
    edit = Edit(prompt="The capital of France is", subject="France", target_new="Berlin")
    compiled = compile_patch(
        Patch(name="p", edits=(edit,)), made.base, "auto", site=made.site, site_tensors=made.moments,
        settings={"on_missed": "report", "steps": 2},
    )  # fmt: skip
    assert compiled.manifest.method == "memit"
