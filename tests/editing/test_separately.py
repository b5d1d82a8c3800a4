"""Patches compiled in one batch are those that compiling one after the other gives."""

from __future__ import annotations

import pytest
import torch

from tests.editing.material import BRAZIL, FRANCE, JAPAN, LOOSE, bench, patch_of
from vllm_edit.editing.compile import compile_patch
from vllm_edit.editing.separately import compile_separately
from vllm_edit.errors import EditError

PATCHES = (patch_of(FRANCE, name="one"), patch_of(JAPAN, BRAZIL, name="two"))


def test_a_batch_of_patches_is_compiled_as_one_after_the_other() -> None:
    one = bench()
    batched = compile_separately(PATCHES, one.base, site=one.site, moment=one.moment, settings=LOOSE)
    for patch, found in zip(PATCHES, batched, strict=True):
        alone = compile_patch(patch, one.base, site=one.site, moment=one.moment, settings=LOOSE)
        assert found.manifest.columns == alone.manifest.columns
        assert found.manifest.groups == alone.manifest.groups
        assert found.report["missed"] == []
        for module, part in found.delta.parts.items():
            expected = alone.delta.parts[module].dense()
            # Batching changes the order of floating-point sums, which Adam carries on; nothing else.
            assert torch.allclose(part.dense(), expected, atol=2e-3 * float(expected.abs().max()))


def test_patches_about_one_subject_are_refused() -> None:
    one = bench()
    twice = (patch_of(FRANCE, name="one"), patch_of(FRANCE, name="two"))
    with pytest.raises(EditError, match="one and two both edit 'France'"):
        compile_separately(twice, one.base, site=one.site, moment=one.moment, settings=LOOSE)
