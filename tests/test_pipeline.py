"""Pipeline.attempt: many patches compiled for measuring, and what of them was refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.editing.material import BRAZIL, FRANCE, JAPAN, LOOSE, bench, patch_of
from vllm_edit.editing.compile import compile_patch
from vllm_edit.evaluation.refused import Refused
from vllm_edit.ike.bank import Bank
from vllm_edit.pipeline import Pipeline
from vllm_edit.store.compiled import CompiledPatch
from vllm_edit.store.store import Store

UNREACHABLE = JAPAN.model_copy(update={"target_new": "全世界最帥的人是誰？全世界最帥的人是李宏毅。"})
AGAIN = FRANCE.model_copy(update={"target_new": "Paris"})


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    one = bench()
    store = Store.create(tmp_path / "store", one.site, one.moment.tensors())
    yield Pipeline(store, one.base, Bank())
    store.registry.close()


def test_every_patch_is_compiled_as_if_alone_or_refused_with_its_reason(pipeline: Pipeline) -> None:
    # Two of them edit one subject, so they cannot be compiled in one batch.
    patches = [patch_of(FRANCE, name="one"), patch_of(UNREACHABLE, name="two"), patch_of(AGAIN, name="three")]
    told: list[str] = []
    tried = pipeline.attempt(patches, "rome", asdict(LOOSE), lambda what, done, total: told.append(what))
    assert [one.declared.name if isinstance(one, Refused) else one.manifest.patch for one in tried] == [
        "one", "two", "three",
    ]  # fmt: skip
    first, refused, third = tried
    assert isinstance(refused, Refused)
    assert UNREACHABLE.target_new in refused.reason
    assert "the target leads by" in refused.reason
    for patch, found in ((patches[0], first), (patches[2], third)):
        assert isinstance(found, CompiledPatch)
        alone = compile_patch(patch, pipeline.base, site=pipeline.site, moment=pipeline.moment, settings=LOOSE)
        for module, part in found.delta.parts.items():
            expected = alone.delta.parts[module].dense()
            assert torch.allclose(part.dense(), expected, atol=2e-3 * float(expected.abs().max()))
    for one in tried:
        assert {demonstration.kind for demonstration in one.demonstrations} == {"copy", "fact"}
    assert "demonstrations" in told
    assert pipeline.store.names() == []


def test_what_is_to_be_reported_is_not_refused(pipeline: Pipeline) -> None:
    (one,) = pipeline.attempt([patch_of(UNREACHABLE, name="two")], "rome", {**asdict(LOOSE), "on_missed": "report"})
    assert isinstance(one, CompiledPatch)
    assert one.report["missed"] == [0]


def test_a_patch_with_scope_subject_is_compiled_as_it_says(pipeline: Pipeline) -> None:
    scoped = patch_of(FRANCE, JAPAN, name="scoped").model_copy(update={"scope": "subject"})
    tried = pipeline.attempt([patch_of(BRAZIL, name="one"), scoped], "rome", asdict(LOOSE))
    one, two = tried
    assert isinstance(one, CompiledPatch)
    assert isinstance(two, CompiledPatch)
    assert (len(one.units), len(two.units)) == (0, 2)
