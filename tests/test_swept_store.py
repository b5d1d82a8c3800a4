"""A store that is there is opened as it is, and only for the base that it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.editing.material import bench
from vllm_edit.errors import EditError
from vllm_edit.store.store import Store
from vllm_edit.swept_store import open_or_create


def test_a_store_that_is_there_is_opened_without_a_sweep(tmp_path: Path) -> None:
    one = bench()
    Store.create(tmp_path / "store", one.site, one.moment.tensors()).registry.close()
    opened, measured = open_or_create(tmp_path / "store", one.base, (), ())
    assert opened.site() == one.site
    assert not measured
    assert opened.passages() == ()
    for passages in (["first"], ["second"]):  # kept where there are none yet
        assert open_or_create(tmp_path / "store", one.base, (), (), passages)[0].passages() == ("first",)
    opened.registry.close()


def test_a_store_of_another_base_is_refused(tmp_path: Path) -> None:
    one = bench("gpt2")
    Store.create(tmp_path / "store", one.site, one.moment.tensors()).registry.close()
    with pytest.raises(EditError, match="is a store for another base than"):
        open_or_create(tmp_path / "store", bench().base, (), ())
