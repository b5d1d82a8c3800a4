"""Patches compiled in one batch equal patches compiled one after the other."""

from __future__ import annotations

import pytest
import torch

from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, bench, patch_of
from vllm_edit.editing.compile import compile_patch, compile_separately
from vllm_edit.errors import EditError

PATCHES = (patch_of(FRANCE, name="one"), patch_of(JAPAN, BRAZIL, name="two"))


def test_a_batch_of_patches_is_compiled_as_one_after_the_other() -> None:
    setup = bench()
    batched = compile_separately(PATCHES, setup.base, site=setup.site, site_tensors=setup.moment, settings=LOOSE)
    for patch, found in zip(PATCHES, batched, strict=True):
        alone = compile_patch(patch, setup.base, site=setup.site, site_tensors=setup.moment, settings=LOOSE)
        assert found.manifest.columns == alone.manifest.columns
        assert found.manifest.groups == alone.manifest.groups
        assert found.report.missed == ()
        for module, part in found.delta.parts.items():
            expected = alone.delta.parts[module].dense()
            # Batching changes the order of floating-point sums, which Adam carries on; nothing else.
            assert torch.allclose(part.dense(), expected, atol=2e-3 * float(expected.abs().max()))


def test_patches_about_one_subject_are_refused() -> None:
    setup = bench()
    twice = (patch_of(FRANCE, name="one"), patch_of(FRANCE, name="two"))
    with pytest.raises(EditError, match="one and two both edit 'France'"):
        compile_separately(twice, setup.base, site=setup.site, site_tensors=setup.moment, settings=LOOSE)


def test_a_patch_of_too_high_a_rank_is_refused_in_a_batch_too_before_anything_is_trained() -> None:
    setup = bench(max_rank=1)
    place = {"site": setup.site, "site_tensors": setup.moment, "settings": LOOSE}
    seen: list[str] = []
    with pytest.raises(EditError, match="needs rank 2; the site allows 1"):
        compile_separately(PATCHES, setup.base, **place, progress=lambda what, *_: seen.append(what))  # type: ignore[arg-type]
    assert not seen
    apart = (patch_of(FRANCE, name="one"), patch_of(JAPAN, name="two"))  # the batch's rank is 2, each patch's is 1
    assert [made.manifest.rank for made in compile_separately(apart, setup.base, **place)] == [1, 1]  # type: ignore[arg-type]
