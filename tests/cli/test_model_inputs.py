"""A store's base model is loaded from where the store was made, unless the user names another place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import SENTENCES, save_tiny
from vllm_edit.artefacts.site import Context
from vllm_edit.cli.model_inputs import base_of
from vllm_edit.editing.site.sites import fixed_site
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.store.store import Store


def test_a_model_that_was_moved_is_asked_for_by_its_flag(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    made = fixed_site(Base.load(folder), SENTENCES * 4, layer=1, token="last", contexts=(Context(),))
    store = Store.create(tmp_path / "store", made.site, made.moment.tensors())
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(EditError, match=rf"no longer at {folder}: name its folder with --model"):
        base_of(store, None)
    assert not store.site().base.departures(base_of(store, str(moved)).fingerprint)
